//! The log of what firmware and boot loader extended the RTMRs with.
//!
//! Follows "TCG PC Client Platform Firmware Profile", section on event logging (crypto agile form),
//! and "Guest-Host-Communication Interface for Intel TDX", section on the CCEL table.
//!
//! A log is not signed. It is believed as far as replaying it gives the registers of a quote that is
//! believed, and then only its digests are: what an event says beside its digest is authentic only
//! where the digest is that of the data.

use ring::digest::{SHA384, digest};

use crate::encoding::Hex;

/// The most bytes a log may have.
pub const MAX_EVENT_LOG: usize = 1024 * 1024;
/// The most algorithms that a log may announce; firmware knows five.
const MAX_ALGORITHMS: u32 = 16;
/// TPM_ALG_SHA384.
const TPM_SHA384: u16 = 0x000c;
const EV_NO_ACTION: u32 = 0x3;

/// Why bytes are not an event log for RTMRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventLogError {
    /// The log is larger than [`MAX_EVENT_LOG`].
    #[error("the event log has {0} bytes, at most 1048576 are taken")]
    TooLarge(usize),
    /// The log does not begin as the specification says.
    #[error("the event log does not begin with `Spec ID Event03`")]
    Header,
    /// The log has no SHA-384 digests, which are all that RTMRs hold.
    #[error("the event log has no SHA-384 digests")]
    Algorithm,
    /// The log ends within an event.
    #[error("the event log ends within event {0}")]
    Truncated(usize),
    /// An event has no SHA-384 digest, two, or one of an algorithm that was not announced.
    #[error("event {0} does not have the announced digests")]
    Digests(usize),
    /// An event extends something that is not an RTMR.
    #[error("event {event} is for measurement register {register}, which is no RTMR")]
    Register {
        /// Its position, from 0.
        event: usize,
        /// Its measurement register: 1 is RTMR0.
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

/// One event that extended a register.
#[derive(Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The RTMR: 0 to 3.
    pub rtmr: usize,
    /// Event type, for example 0x80000003 for an EFI application that was started.
    pub kind: u32,
    /// What the register was extended with.
    pub digest: Hex<48>,
    /// What the firmware says it measured.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// Whether the digest is that of [`Event::data`], so that the data are as authentic as it is.
    #[must_use]
    pub fn is_of_its_data(&self) -> bool {
        digest(&SHA384, self.data).as_ref() == self.digest.0
    }

    /// Whether the specification has the digest be that of the data.
    fn must_be_of_its_data(&self) -> bool {
        // EV_SEPARATOR, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_GPT_EVENT, EV_EFI_ACTION,
        // EV_EFI_VARIABLE_AUTHORITY.
        matches!(
            self.kind,
            0x4 | 0x8000_0001 | 0x8000_0006 | 0x8000_0007 | 0x8000_00e0
        )
    }
}

impl std::fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rtmr, kind, .. } = self;
        write!(f, "Event(RTMR{rtmr}, {kind:#x}, {})", self.digest)
    }
}

/// The events of a log, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog<'a> {
    events: Vec<Event<'a>>,
}

impl<'a> EventLog<'a> {
    /// Reads a log in the form of the CCEL table: events, then filler of all ones or all zeroes.
    ///
    /// # Errors
    ///
    /// [`EventLogError`]; a log that is not wholly understood proves nothing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        if bytes.len() > MAX_EVENT_LOG {
            return Err(EventLogError::TooLarge(bytes.len()));
        }
        let mut cursor = Cursor(bytes);
        let algorithms = header(&mut cursor).ok_or(EventLogError::Header)?;
        if !algorithms.contains(&(TPM_SHA384, 48)) {
            return Err(EventLogError::Algorithm);
        }
        let mut events = Vec::new();
        for index in 0.. {
            if cursor.is_filler() {
                break;
            }
            let register = cursor.u32().ok_or(EventLogError::Truncated(index))?;
            if register == u32::MAX {
                // The terminator, and yet not filler up to the end.
                return Err(EventLogError::Trailing(cursor.0.len()));
            }
            if let Some(event) = event(&mut cursor, index, register, &algorithms)? {
                events.push(event);
            }
        }
        Ok(Self { events })
    }

    /// Every event that extended a register.
    #[must_use]
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// Replays the log; an application's own log goes on from there.
    #[must_use]
    pub fn replay(&self) -> Registers {
        let mut registers = Registers::default();
        for event in &self.events {
            registers.extend(event.rtmr, &event.digest);
        }
        registers
    }
}

/// What the RTMRs hold after some events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers([Hex<48>; 4]);

impl Default for Registers {
    /// As at launch: all zero.
    fn default() -> Self {
        Self([Hex([0; 48]); 4])
    }
}

impl Registers {
    /// Extends RTMR`rtmr` as TDG.MR.RTMR.EXTEND does; there is none after 3.
    pub fn extend(&mut self, rtmr: usize, with: &Hex<48>) {
        if let Some(register) = self.0.get_mut(rtmr) {
            let mut both = [0; 96];
            let (old, new) = both.split_at_mut(48);
            old.copy_from_slice(&register.0);
            new.copy_from_slice(&with.0);
            register.0.copy_from_slice(digest(&SHA384, &both).as_ref());
        }
    }

    /// RTMR0 to RTMR3.
    #[must_use]
    pub fn values(&self) -> &[Hex<48>; 4] {
        &self.0
    }

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

/// The rest of an event; `None` if it extended nothing.
fn event<'a>(
    cursor: &mut Cursor<'a>,
    index: usize,
    register: u32,
    algorithms: &[(u16, usize)],
) -> Result<Option<Event<'a>>, EventLogError> {
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
        if algorithm == TPM_SHA384 && found.replace(value).is_some() {
            return Err(EventLogError::Digests(index));
        }
    }
    let data = cursor.sized().ok_or(TRUNCATED(index))?;
    if kind == EV_NO_ACTION {
        return Ok(None);
    }
    // 0 is MRTD, which nothing extends after launch.
    let rtmr = match register {
        1 => 0,
        2 => 1,
        3 => 2,
        4 => 3,
        register => {
            return Err(EventLogError::Register {
                event: index,
                register,
            });
        }
    };
    let digest = found
        .and_then(|value| value.try_into().ok())
        .map(Hex)
        .ok_or(EventLogError::Digests(index))?;
    let event = Event {
        rtmr,
        kind,
        digest,
        data,
    };
    if event.must_be_of_its_data() && !event.is_of_its_data() {
        return Err(EventLogError::Data(index));
    }
    Ok(Some(event))
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
