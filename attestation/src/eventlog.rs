//! The log of what firmware and boot loader extended measurement registers with: the RTMRs of TDX
//! (SHA-384), or the PCRs of a TPM (SHA-256).
//!
//! Follows "TCG PC Client Platform Firmware Profile", section on event logging (crypto agile form),
//! and "Guest-Host-Communication Interface for Intel TDX", section on the CCEL table.
//!
//! A log is not signed. It is believed as far as replaying it gives the registers of a quote that is
//! believed, and then only its digests are: what an event says beside its digest is authentic only
//! where the digest is that of the data.

use ring::digest::{Algorithm, SHA256, SHA384, digest};

use crate::encoding::Hex;

/// The most bytes a log may have.
pub const MAX_EVENT_LOG: usize = 1024 * 1024;
/// The most algorithms that a log may announce; firmware knows five.
const MAX_ALGORITHMS: u32 = 16;
/// TPM_ALG_SHA256.
const TPM_SHA256: u16 = 0x000b;
/// TPM_ALG_SHA384.
const TPM_SHA384: u16 = 0x000c;
const EV_NO_ACTION: u32 = 0x3;

/// EV_EFI_BOOT_SERVICES_APPLICATION: a program that the firmware was about to start.
pub(crate) const BOOT_APPLICATION: u32 = 0x8000_0003;

/// Which registers a log is about; `N` is the length of their digests.
struct Bank {
    algorithm: u16,
    hash: &'static Algorithm,
    /// Gives the register that an event's number means.
    register: fn(u32) -> Option<usize>,
}

/// 1 to 4 mean RTMR0 to RTMR3. 0 is MRTD, which nothing extends after launch.
const RTMRS: Bank = Bank {
    algorithm: TPM_SHA384,
    hash: &SHA384,
    register: |number| match number {
        1..=4 => usize::try_from(number - 1).ok(),
        _ => None,
    },
};

/// PCRs mean themselves. 17 to 22 belong to a later, dynamic launch, which begins a log of its own.
const PCRS: Bank = Bank {
    algorithm: TPM_SHA256,
    hash: &SHA256,
    register: |number| match number {
        0..=16 | 23 => usize::try_from(number).ok(),
        _ => None,
    },
};

const fn bank<const N: usize>() -> Bank {
    if N == 32 { PCRS } else { RTMRS }
}

/// Why bytes are not an event log for these registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventLogError {
    /// The log is larger than [`MAX_EVENT_LOG`].
    #[error("the event log has {0} bytes, at most 1048576 are taken")]
    TooLarge(usize),
    /// The log does not begin as the specification says.
    #[error("the event log does not begin with `Spec ID Event03`")]
    Header,
    /// The log has no digests of the kind that the registers hold.
    #[error("the event log has no digests of the kind that the registers hold")]
    Algorithm,
    /// The log ends within an event.
    #[error("the event log ends within event {0}")]
    Truncated(usize),
    /// An event has no digest of the right kind, two, or one of an algorithm that was not announced.
    #[error("event {0} does not have the announced digests")]
    Digests(usize),
    /// An event extends something that is none of the registers.
    #[error("event {event} is for measurement register {register}, which is none of those logged")]
    Register {
        /// Its position, from 0.
        event: usize,
        /// Its measurement register; for TDX, 1 is RTMR0.
        register: u32,
    },
    /// An event whose digest is that of its data has another digest.
    #[error("the data of event {0} are not what was measured")]
    Data(usize),
    /// Something other than the filler follows the last event.
    #[error("{0} bytes that are no events follow the event log")]
    Trailing(usize),
}

impl EventLogError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge(_) => "event-log-size",
            Self::Header => "event-log-header",
            Self::Algorithm => "event-log-algorithm",
            Self::Truncated(_) => "event-log-truncated",
            Self::Digests(_) => "event-log-digests",
            Self::Register { .. } => "event-log-register",
            Self::Data(_) => "event-log-data",
            Self::Trailing(_) => "event-log-trailing",
        }
    }
}

/// One event that extended a register; `N` is 48 for RTMRs, 32 for PCRs.
#[derive(Clone, PartialEq, Eq)]
pub struct Event<'a, const N: usize = 48> {
    /// The RTMR, 0 to 3, or the PCR, 0 to 23.
    pub register: usize,
    /// Event type, for example 0x80000003 for an EFI application that was started.
    pub kind: u32,
    /// What the register was extended with.
    pub digest: Hex<N>,
    /// What the firmware says it measured.
    pub data: &'a [u8],
}

impl<const N: usize> Event<'_, N> {
    /// Whether the digest is that of [`Event::data`], so that the data are as authentic as it is.
    #[must_use]
    pub fn is_of_its_data(&self) -> bool {
        digest(bank::<N>().hash, self.data).as_ref() == self.digest.0
    }

    /// Whether the specification has the digest be that of the data, and firmware keeps to it.
    fn must_be_of_its_data(&self) -> bool {
        match self.kind {
            // EV_SEPARATOR, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_GPT_EVENT, EV_EFI_ACTION.
            0x4 | 0x8000_0001 | 0x8000_0006 | 0x8000_0007 => true,
            // EV_EFI_VARIABLE_AUTHORITY: genuine logs of TPMs have entries with the digest of the
            // certificate alone.
            0x8000_00e0 => N == 48,
            _ => false,
        }
    }
}

impl<const N: usize> std::fmt::Debug for Event<'_, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { register, kind, .. } = self;
        let name = if N == 32 { "PCR" } else { "RTMR" };
        write!(f, "Event({name}{register}, {kind:#x}, {})", self.digest)
    }
}

/// The events of a log, in order; `N` is 48 for RTMRs, 32 for PCRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog<'a, const N: usize = 48> {
    events: Vec<Event<'a, N>>,
    /// The locality that started a TPM, which PCR0 begins with.
    locality: u8,
    /// Length of the log without the filler.
    length: usize,
}

impl<'a> EventLog<'a, 48> {
    /// Reads the log of the RTMRs in the form of the CCEL table: events, then filler of all ones or
    /// all zeroes.
    ///
    /// # Errors
    ///
    /// [`EventLogError`]; a log that is not wholly understood proves nothing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        Self::read(bytes)
    }

    /// Replays the log; an application's own log goes on from there.
    #[must_use]
    pub fn replay(&self) -> Registers {
        self.extended(Registers::default())
    }
}

impl<'a> EventLog<'a, 32> {
    /// Reads the log of a TPM's PCRs, for their SHA-256 bank.
    ///
    /// # Errors
    ///
    /// [`EventLogError`]; a log that is not wholly understood proves nothing.
    pub fn parse_pcrs(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        Self::read(bytes)
    }

    /// Replays the log, from the state that a TPM starts with.
    #[must_use]
    pub fn replay_pcrs(&self) -> Registers<32, 24> {
        let mut registers = Registers([Hex([0; 32]); 24]);
        registers.0[0].0[31] = self.locality;
        self.extended(registers)
    }
}

impl<'a, const N: usize> EventLog<'a, N> {
    fn read(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_EVENT_LOG {
            return Err(EventLogError::TooLarge(bytes.len()));
        }
        let mut cursor = Cursor(bytes);
        let algorithms = header(&mut cursor).ok_or(EventLogError::Header)?;
        if !algorithms.contains(&(bank::<N>().algorithm, N)) {
            return Err(EventLogError::Algorithm);
        }
        let mut events = Vec::new();
        let mut locality = 0;
        for index in 0.. {
            if cursor.is_filler() {
                break;
            }
            let register = cursor.u32().ok_or(EventLogError::Truncated(index))?;
            if register == u32::MAX {
                // The terminator, and yet not filler up to the end.
                return Err(EventLogError::Trailing(cursor.0.len()));
            }
            match event(&mut cursor, index, register, &algorithms)? {
                Logged::Event(event) => events.push(event),
                Logged::Locality(it) => locality = it,
                Logged::Nothing => {}
            }
        }
        Ok(Self {
            events,
            locality,
            length: bytes.len().saturating_sub(cursor.0.len()),
        })
    }

    /// Every event that extended a register.
    #[must_use]
    pub fn events(&self) -> &[Event<'a, N>] {
        &self.events
    }

    /// How many bytes the log has before the filler.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    fn extended<const R: usize>(&self, mut registers: Registers<N, R>) -> Registers<N, R> {
        for event in &self.events {
            registers.extend(event.register, &event.digest);
        }
        registers
    }
}

/// What registers hold after some events: four RTMRs, or 24 PCRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers<const N: usize = 48, const R: usize = 4>([Hex<N>; R]);

impl<const N: usize, const R: usize> Default for Registers<N, R> {
    /// As at launch: all zero.
    fn default() -> Self {
        Self([Hex([0; N]); R])
    }
}

impl<const N: usize, const R: usize> Registers<N, R> {
    /// Extends a register as TDG.MR.RTMR.EXTEND and TPM2_PCR_Extend do; one that is not there stays
    /// so.
    pub fn extend(&mut self, register: usize, with: &Hex<N>) {
        if let Some(register) = self.0.get_mut(register) {
            let both = [register.0, with.0];
            let new = digest(bank::<N>().hash, both.as_flattened());
            register.0.copy_from_slice(new.as_ref());
        }
    }

    /// The registers in order.
    #[must_use]
    pub fn values(&self) -> &[Hex<N>; R] {
        &self.0
    }
}

impl Registers {
    /// Which of the registers of a believed quote these events explain, by
    /// [`crate::TdxClaims::rtmrs`].
    ///
    /// A register without events is explained only if it is still zero.
    #[must_use]
    pub fn explain(&self, rtmrs: &[Hex<48>; 4]) -> [bool; 4] {
        let [a, b, c, d] = rtmrs;
        let [w, x, y, z] = &self.0;
        [a == w, b == x, c == y, d == z]
    }
}

/// The announced algorithms and lengths of their digests.
fn header(cursor: &mut Cursor<'_>) -> Option<Vec<(u16, usize)>> {
    // The first event has the older form with one SHA-1 digest, which means nothing.
    let (_register, kind) = (cursor.u32()?, cursor.u32()?);
    cursor.take(20)?;
    let mut data = Cursor(cursor.sized()?);
    if kind != EV_NO_ACTION || data.take(16)? != b"Spec ID Event03\0" {
        return None;
    }
    // Platform class, version, size of UINTN.
    data.take(8)?;
    let count = data.u32().filter(|count| *count <= MAX_ALGORITHMS)?;
    let mut algorithms = Vec::new();
    for _ in 0..count {
        let (algorithm, length) = (data.u16()?, data.u16()?);
        if algorithms.iter().any(|(other, _)| *other == algorithm) {
            return None;
        }
        algorithms.push((algorithm, usize::from(length)));
    }
    let vendor = data.take(1)?.first().copied()?;
    (data.0.len() == usize::from(vendor)).then_some(algorithms)
}

/// What one entry of a log says.
enum Logged<'a, const N: usize> {
    Event(Event<'a, N>),
    /// EV_NO_ACTION with which locality started the TPM.
    Locality(u8),
    Nothing,
}

/// The rest of an event.
fn event<'a, const N: usize>(
    cursor: &mut Cursor<'a>,
    index: usize,
    register: u32,
    algorithms: &[(u16, usize)],
) -> Result<Logged<'a, N>, EventLogError> {
    const TRUNCATED: fn(usize) -> EventLogError = EventLogError::Truncated;
    let kind = cursor.u32().ok_or(TRUNCATED(index))?;
    let count = cursor.u32().ok_or(TRUNCATED(index))?;
    if count > MAX_ALGORITHMS {
        return Err(EventLogError::Digests(index));
    }
    let mut found = None;
    for _ in 0..count {
        let algorithm = cursor.u16().ok_or(TRUNCATED(index))?;
        let (_, length) = algorithms
            .iter()
            .find(|(known, _)| *known == algorithm)
            .ok_or(EventLogError::Digests(index))?;
        let value = cursor.take(*length).ok_or(TRUNCATED(index))?;
        if algorithm == bank::<N>().algorithm && found.replace(value).is_some() {
            return Err(EventLogError::Digests(index));
        }
    }
    let data = cursor.sized().ok_or(TRUNCATED(index))?;
    if kind == EV_NO_ACTION {
        return Ok(match data.strip_prefix(b"StartupLocality\0") {
            Some([locality]) if register == 0 => Logged::Locality(*locality),
            _ => Logged::Nothing,
        });
    }
    let number = register;
    let register = (bank::<N>().register)(number).ok_or(EventLogError::Register {
        event: index,
        register: number,
    })?;
    let digest = found
        .and_then(|value| value.try_into().ok())
        .map(Hex)
        .ok_or(EventLogError::Digests(index))?;
    let event = Event {
        register,
        kind,
        digest,
        data,
    };
    if event.must_be_of_its_data() && !event.is_of_its_data() {
        return Err(EventLogError::Data(index));
    }
    Ok(Logged::Event(event))
}

/// What is left to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// Bytes after their length.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    /// Whether nothing is left, or only the bytes that firmware fills the table with.
    fn is_filler(&self) -> bool {
        let all = |filler| self.0.iter().all(|byte| *byte == filler);
        all(0xff) || all(0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEPARATOR: u32 = 0x4;
    const IPL: u32 = 0xd;

    fn log(algorithms: &[(u16, u16)]) -> Vec<u8> {
        let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
        spec.extend_from_slice(&u32::try_from(algorithms.len()).unwrap().to_le_bytes());
        for (algorithm, length) in algorithms {
            spec.extend_from_slice(&algorithm.to_le_bytes());
            spec.extend_from_slice(&length.to_le_bytes());
        }
        spec.push(0);
        let mut log = [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20]].concat();
        log.extend_from_slice(&u32::try_from(spec.len()).unwrap().to_le_bytes());
        log.extend_from_slice(&spec);
        log
    }

    fn add(log: &mut Vec<u8>, register: u32, kind: u32, digests: &[(u16, &[u8])], data: &[u8]) {
        log.extend_from_slice(&register.to_le_bytes());
        log.extend_from_slice(&kind.to_le_bytes());
        log.extend_from_slice(&u32::try_from(digests.len()).unwrap().to_le_bytes());
        for (algorithm, value) in digests {
            log.extend_from_slice(&algorithm.to_le_bytes());
            log.extend_from_slice(value);
        }
        log.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        log.extend_from_slice(data);
    }

    /// A log of one event in RTMR1.
    fn one(kind: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
        let mut log = log(&[(TPM_SHA384, 48), (0xb, 32)]);
        add(&mut log, 2, kind, digests, data);
        log
    }

    fn code(log: &[u8]) -> &'static str {
        EventLog::parse(log).unwrap_err().code()
    }

    #[test]
    fn registers_are_extended_as_the_module_does() {
        let mut log = one(IPL, &[(0xb, &[9; 32]), (TPM_SHA384, &[1; 48])], b"kernel");
        add(&mut log, 2, EV_NO_ACTION, &[(TPM_SHA384, &[7; 48])], b"");
        add(&mut log, 4, IPL, &[(TPM_SHA384, &[2; 48])], b"");
        log.extend_from_slice(&[0xff; 100]);
        let log = EventLog::parse(&log).unwrap();
        assert_eq!(log.events().len(), 2);
        let extended = |old: [u8; 48], new: [u8; 48]| {
            let both = [old, new].concat();
            let value: [u8; 48] = digest(&SHA384, &both).as_ref().try_into().unwrap();
            Hex(value)
        };
        let zero = Hex([0; 48]);
        let (rtmr1, rtmr3) = (extended([0; 48], [1; 48]), extended([0; 48], [2; 48]));
        let mut registers = log.replay();
        assert_eq!(registers.values(), &[zero, rtmr1, zero, rtmr3]);
        // A register that something unknown extended is not explained; its own log explains it.
        let seen = [zero, rtmr1, zero, extended(rtmr3.0, [3; 48])];
        assert_eq!(registers.explain(&seen), [true, true, true, false]);
        registers.extend(3, &Hex([3; 48]));
        assert_eq!(registers.explain(&seen), [true; 4]);
        registers.extend(4, &Hex([3; 48]));
        assert_eq!(registers.explain(&seen), [true; 4]);
    }

    #[test]
    fn data_that_were_not_measured_are_refused_where_it_can_be_told() {
        let right: [u8; 48] = digest(&SHA384, &[0; 4]).as_ref().try_into().unwrap();
        assert!(EventLog::parse(&one(SEPARATOR, &[(TPM_SHA384, &right)], &[0; 4])).is_ok());
        let forged = one(SEPARATOR, &[(TPM_SHA384, &right)], &[1; 4]);
        assert_eq!(code(&forged), "event-log-data");
        // The digest of an image is not that of its event; then the data prove nothing.
        let image = one(IPL, &[(TPM_SHA384, &right)], b"anything");
        let log = EventLog::parse(&image).unwrap();
        assert!(!log.events()[0].is_of_its_data());
    }

    #[test]
    fn digests_are_those_that_were_announced_with_one_sha384_among_them() {
        assert_eq!(code(&log(&[(0x12, 32)])), "event-log-algorithm");
        assert_eq!(code(&log(&[(TPM_SHA384, 32)])), "event-log-algorithm");
        let twice = log(&[(TPM_SHA384, 48), (TPM_SHA384, 48)]);
        assert_eq!(code(&twice), "event-log-header");
        assert_eq!(
            code(&one(IPL, &[(0xb, &[0; 32])], b"")),
            "event-log-digests"
        );
        assert_eq!(
            code(&one(IPL, &[(0x12, &[0; 32])], b"")),
            "event-log-digests"
        );
        let value: &[u8] = &[0; 48];
        let twice = one(IPL, &[(TPM_SHA384, value), (TPM_SHA384, value)], b"");
        assert_eq!(code(&twice), "event-log-digests");
    }

    #[test]
    fn only_rtmrs_are_extended() {
        for register in [0, 5, 8] {
            let mut log = log(&[(TPM_SHA384, 48)]);
            add(&mut log, register, IPL, &[(TPM_SHA384, &[1; 48])], b"x");
            assert_eq!(code(&log), "event-log-register");
        }
    }

    #[test]
    fn a_log_ends_with_an_event_or_with_filler() {
        let whole = one(IPL, &[(TPM_SHA384, &[1; 48])], b"kernel");
        for filler in [0, 0xff] {
            let filled = [&whole[..], &[filler; 50]].concat();
            assert_eq!(EventLog::parse(&filled).unwrap().events().len(), 1);
        }
        let mut hidden = [&whole[..], &[0xff; 50]].concat();
        hidden.push(1);
        assert_eq!(code(&hidden), "event-log-trailing");
        let begin = log(&[(TPM_SHA384, 48), (0xb, 32)]).len();
        for length in 0..whole.len() {
            let truncated = EventLog::parse(&whole[..length]);
            // The beginning alone is a log without events.
            assert_eq!(truncated.is_ok(), length == begin, "{length} bytes");
        }
        assert_eq!(code(&vec![0; MAX_EVENT_LOG + 1]), "event-log-size");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = EventLog::parse(&noise);
            let mut log = log(&[(TPM_SHA384, 48)]);
            log.extend_from_slice(&noise);
            if let Ok(log) = EventLog::parse(&log) {
                let _ = (log.replay(), format!("{log:?}"));
            }
        }
    }
}
