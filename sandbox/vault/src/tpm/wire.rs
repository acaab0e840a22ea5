//! Commands and answers as bytes, big endian.

use zeroize::{Zeroize, Zeroizing};

use super::{Pcrs, TpmError};

/// No answer is longer.
pub(super) const MAX_ANSWER: usize = 4096;

// Part 2, "TPM_CC", "TPM_RH", "TPM_ALG_ID", "TPM_SE".
pub(super) const NV_DEFINE_SPACE: u32 = 0x12a;
pub(super) const CREATE_PRIMARY: u32 = 0x131;
pub(super) const NV_WRITE: u32 = 0x137;
pub(super) const NV_READ: u32 = 0x14e;
pub(super) const CREATE: u32 = 0x153;
pub(super) const LOAD: u32 = 0x157;
pub(super) const UNSEAL: u32 = 0x15e;
pub(super) const FLUSH_CONTEXT: u32 = 0x165;
pub(super) const START_AUTH_SESSION: u32 = 0x176;
pub(super) const POLICY_PCR: u32 = 0x17f;
pub(super) const POLICY_GET_DIGEST: u32 = 0x189;
pub(super) const OWNER: u32 = 0x4000_0001;
pub(super) const NULL: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;
pub(super) const ALG_NULL: u16 = 0x10;
pub(super) const SHA256: u16 = 0x0b;
const KEYED_HASH: u16 = 0x08;
const ECC: u16 = 0x23;
const AES: u16 = 0x06;
const CFB: u16 = 0x43;
const NIST_P256: u16 = 0x03;
pub(super) const POLICY: u8 = 1;
pub(super) const TRIAL: u8 = 3;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;

/// A command being put together: handles first, then the authorisation, then parameters.
pub(super) struct Command {
    code: u32,
    handles: Vec<u8>,
    session: Option<u32>,
    parameters: Zeroizing<Vec<u8>>,
}

impl Command {
    pub(super) fn new(code: u32) -> Self {
        Self {
            code,
            handles: Vec::new(),
            session: None,
            // As much as any command takes, so that no secret is left where it grew out of.
            parameters: Zeroizing::new(Vec::with_capacity(2048)),
        }
    }

    pub(super) fn handle(mut self, handle: u32) -> Self {
        self.handles.extend_from_slice(&handle.to_be_bytes());
        self
    }

    /// Authorises with the empty password.
    pub(super) fn password(self) -> Self {
        self.policy(PASSWORD)
    }

    /// Authorises with a policy session.
    pub(super) fn policy(mut self, session: u32) -> Self {
        self.session = Some(session);
        self
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.parameters.push(value);
        self
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.parameters.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.parameters.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A TPM2B: bytes after their length.
    pub(super) fn sized(mut self, bytes: &[u8]) -> Self {
        self = self.u16(bytes.len() as u16);
        self.parameters.extend_from_slice(bytes);
        self
    }

    /// A TPM2B_SENSITIVE_CREATE without a password.
    pub(super) fn sensitive(self, data: &[u8]) -> Self {
        self.u16(data.len() as u16 + 4).u16(0).sized(data)
    }

    /// A TPML_PCR_SELECTION of the SHA-256 bank.
    pub(super) fn pcrs(self, pcrs: Pcrs) -> Self {
        let [a, b, c, _] = pcrs.mask().to_le_bytes();
        self.u32(1).u16(SHA256).u8(3).u8(a).u8(b).u8(c)
    }

    pub(super) fn answers_with_handle(&self) -> bool {
        matches!(self.code, CREATE_PRIMARY | LOAD | START_AUTH_SESSION)
    }

    pub(super) fn finish(self) -> Zeroizing<Vec<u8>> {
        // Session handle, no nonce, no attributes (the session ends with the command), no HMAC.
        let auth = self.session.map(|session| {
            let area = [&session.to_be_bytes()[..], &[0, 0, 0, 0, 0]].concat();
            [&(area.len() as u32).to_be_bytes()[..], &area].concat()
        });
        let tag = if auth.is_some() {
            SESSIONS
        } else {
            NO_SESSIONS
        };
        let auth = auth.unwrap_or_default();
        let len = 10 + self.handles.len() + auth.len() + self.parameters.len();
        let mut out = Zeroizing::new(Vec::with_capacity(len));
        out.extend_from_slice(&tag.to_be_bytes());
        out.extend_from_slice(&(len as u32).to_be_bytes());
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(&self.handles);
        out.extend_from_slice(&auth);
        out.extend_from_slice(&self.parameters);
        out
    }
}

/// The length that an answer says it has; `None` if there is too little of it to tell.
pub(super) fn answer_len(bytes: &[u8]) -> Result<Option<usize>, TpmError> {
    let Some(len) = bytes.get(2..6).and_then(|b| <[u8; 4]>::try_from(b).ok()) else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(len) as usize;
    if (10..=MAX_ANSWER).contains(&len) {
        Ok(Some(len))
    } else {
        Err(TpmError::Answer)
    }
}

/// What a TPM answered, without handle and authorisation.
pub(super) struct Answer {
    handle: Option<u32>,
    parameters: Zeroizing<Vec<u8>>,
    at: usize,
}

impl Answer {
    /// Reads an answer; one that tells of a failure is the error.
    pub(super) fn parse(bytes: &[u8], with_handle: bool) -> Result<Self, TpmError> {
        let mut answer = Self {
            handle: None,
            parameters: Zeroizing::new(bytes.to_vec()),
            at: 0,
        };
        let (tag, len, code) = (answer.u16()?, answer.u32()?, answer.u32()?);
        if len as usize != bytes.len() {
            return Err(TpmError::Answer);
        }
        refusal(code)?;
        if with_handle {
            answer.handle = Some(answer.u32()?);
        }
        if tag == SESSIONS {
            let len = answer.u32()? as usize;
            let end = answer.at.checked_add(len).filter(|end| *end <= bytes.len());
            let end = end.ok_or(TpmError::Answer)?;
            answer.parameters[end..].zeroize();
            answer.parameters.truncate(end);
        }
        Ok(answer)
    }

    pub(super) fn handle(&self) -> Result<u32, TpmError> {
        self.handle.ok_or(TpmError::Answer)
    }

    /// Takes a TPM2B.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, TpmError> {
        let len = usize::from(self.u16()?);
        self.take(len).map(<[u8]>::to_vec)
    }

    fn u16(&mut self) -> Result<u16, TpmError> {
        let bytes = self.take(2)?.try_into().map_err(|_| TpmError::Answer)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, TpmError> {
        let bytes = self.take(4)?.try_into().map_err(|_| TpmError::Answer)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn take(&mut self, len: usize) -> Result<&[u8], TpmError> {
        let end = self.at.checked_add(len).ok_or(TpmError::Answer)?;
        let taken = self.parameters.get(self.at..end).ok_or(TpmError::Answer)?;
        self.at = end;
        Ok(taken)
    }
}

/// Part 2, "TPM_RC": what a response code other than success means here.
fn refusal(code: u32) -> Result<(), TpmError> {
    // Format one says in further bits which parameter, handle or session is meant.
    let plain = if code & 0x80 != 0 { code & 0xbf } else { code };
    match plain {
        0 => Ok(()),
        // TPM_RC_POLICY_FAIL, TPM_RC_PCR_CHANGED
        0x9d | 0x128 => Err(TpmError::Pcrs),
        // TPM_RC_INTEGRITY
        0x9f => Err(TpmError::OtherTpm),
        _ => Err(TpmError::Refused(code)),
    }
}

/// Whether this response code says that an NV index does not exist, or was never written.
pub(super) fn is_nothing(code: u32) -> bool {
    // TPM_RC_HANDLE, of the second handle; TPM_RC_NV_UNINITIALIZED
    code == 0x28b || code == 0x14a
}

/// TPMS_NV_PUBLIC of an ordinary index that the owner reads and writes.
pub(super) fn nv_public(index: u32, len: u16) -> Vec<u8> {
    // OWNERWRITE, OWNERREAD, NO_DA
    let attributes: u32 = 0x0202_0002;
    let public = Command::new(0)
        .u32(index)
        .u16(SHA256)
        .u32(attributes)
        .sized(&[])
        .u16(len);
    public.parameters.to_vec()
}

/// TPMT_PUBLIC of the storage primary: "TCG TPM v2.0 Provisioning Guidance", ECC P-256 template.
pub(super) fn primary_template() -> Vec<u8> {
    // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
    let attributes: u32 = 0x0003_0472;
    let template = Command::new(0)
        .u16(ECC)
        .u16(SHA256)
        .u32(attributes)
        .sized(&[])
        .u16(AES)
        .u16(128)
        .u16(CFB)
        .u16(ALG_NULL)
        .u16(NIST_P256)
        .u16(ALG_NULL)
        .sized(&[])
        .sized(&[]);
    template.parameters.to_vec()
}

/// TPMT_PUBLIC of a sealed object that only this policy opens.
pub(super) fn sealed_template(policy: &[u8]) -> Vec<u8> {
    // fixedTPM, fixedParent, noDA; not userWithAuth, so that no password opens it
    let attributes: u32 = 0x0000_0412;
    let template = Command::new(0)
        .u16(KEYED_HASH)
        .u16(SHA256)
        .u32(attributes)
        .sized(policy)
        .u16(ALG_NULL)
        .sized(&[]);
    template.parameters.to_vec()
}
