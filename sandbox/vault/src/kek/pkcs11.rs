//! A KEK derived by a key that never leaves its HSM: PKCS #11.
//!
//! ```text
//! KEK = HMAC-SHA-256 by the token (CKM_SHA256_HMAC) of
//!       "casemate-vault v1 pkcs11" | 00 | vault id 16 | slot id 16 | salt 32
//! ```
//!
//! Follows OASIS "PKCS #11 Cryptographic Token Interface", HMAC mechanisms. The token's key is a generic
//! secret of 32 bytes, sensitive and not extractable; whoever holds token and PIN can derive, and
//! nobody can take the key along. Parameters of a slot: salt 32 | label of the key.
//!
//! The module is a shared library that runs in this process: name only one you trust.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11 as Module};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::{KekError, KekProvider};
use crate::envelope::{SlotInfo, SlotKind};
use crate::secret::Kek;

/// Derives KEKs with a key in an HSM.
pub struct Pkcs11 {
    session: Mutex<Session>,
    label: String,
}

impl Pkcs11 {
    /// Loads a PKCS #11 module and logs in to the token of this label, to use its key of this label.
    ///
    /// # Errors
    ///
    /// [`KekError::Unavailable`] if the module, the token or the login fails, and
    /// [`KekError::Parameters`] for a key label over 255 bytes.
    pub fn open(
        module: &Path,
        token: &str,
        pin: Zeroizing<String>,
        key: &str,
    ) -> Result<Self, KekError> {
        if key.len() > 255 {
            return Err(KekError::Parameters);
        }
        let module = Module::new(module).map_err(unavailable)?;
        let flags = CInitializeFlags::OS_LOCKING_OK;
        match module.initialize(CInitializeArgs::new(flags)) {
            Ok(()) => {}
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(unavailable(error)),
        }
        let slots = module.get_slots_with_token().map_err(unavailable)?;
        let named = |slot: &cryptoki::slot::Slot| {
            let info = module.get_token_info(*slot);
            info.is_ok_and(|info| info.label().trim_end() == token)
        };
        let mut slots = slots.into_iter().filter(named);
        let (Some(slot), None) = (slots.next(), slots.next()) else {
            let why = "there is not exactly one token of that label";
            return Err(unavailable(why));
        };
        let session = module.open_rw_session(slot).map_err(unavailable)?;
        let pin = AuthPin::new(pin.as_str().into());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(unavailable(error)),
        }
        Ok(Self {
            session: Mutex::new(session),
            label: key.to_owned(),
        })
    }

    /// Has the token make the key, if it has none of this label; tells whether it did.
    ///
    /// # Errors
    ///
    /// [`KekError::Unavailable`] if the token refuses.
    pub fn make_key(&self) -> Result<bool, KekError> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if !found(&session, &self.label)?.is_empty() {
            return Ok(false);
        }
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(32.into()),
            Attribute::Label(self.label.as_bytes().to_vec()),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        session
            .generate_key(&Mechanism::GenericSecretKeyGen, &template)
            .map(|_| true)
            .map_err(unavailable)
    }
}

impl std::fmt::Debug for Pkcs11 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pkcs11")
            .field("key", &self.label)
            .finish_non_exhaustive()
    }
}

impl KekProvider for Pkcs11 {
    fn kind(&self) -> SlotKind {
        SlotKind::Pkcs11
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        let mut parameters = vec![0; SALT];
        getrandom::fill(&mut parameters).map_err(unavailable)?;
        parameters.extend_from_slice(self.label.as_bytes());
        Ok(parameters)
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        let (salt, label) = slot
            .parameters
            .split_at_checked(SALT)
            .ok_or(KekError::Parameters)?;
        // The header is not believed yet: a label in it must not have another key used.
        if label != self.label.as_bytes() {
            return Err(KekError::Refused("the slot is of another key".into()));
        }
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = found(&session, &self.label)?;
        let [key] = keys[..] else {
            return Err(KekError::Refused(
                "the token does not have exactly one key of that label".into(),
            ));
        };
        let text = [LABEL, &slot.vault_id, &slot.slot_id, salt].concat();
        let mac = session.sign(&Mechanism::Sha256Hmac, key, &text);
        let mut mac = Zeroizing::new(mac.map_err(unavailable)?);
        let kek: &mut [u8; 32] = mac.as_mut_slice().try_into().map_err(unavailable)?;
        Kek::take(kek).map_err(KekError::Unavailable)
    }
}

const SALT: usize = 32;
const LABEL: &[u8] = b"casemate-vault v1 pkcs11\0";

/// The secret keys of this label.
fn found(session: &Session, label: &str) -> Result<Vec<cryptoki::object::ObjectHandle>, KekError> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    session.find_objects(&template).map_err(unavailable)
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> KekError {
    KekError::Unavailable(std::io::Error::other(error))
}
