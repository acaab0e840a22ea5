//! The `network` lever: an endpoint can no longer be connected, and what was connected to it ends; or it
//! can be connected again.
//!
//! No connection begins any more from the moment the table is changed. Flows that exist are shut down at
//! once, first in the running sandbox and then, so that none is overlooked, while nothing in it runs.
//! See [`crate::isolation::network`].

use policy::Endpoint;

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;

/// Takes an endpoint away, or gives it back.
///
/// # Errors
///
/// When the policy has no such endpoint, or flows to it may be left.
pub fn set(instance: &mut dyn Instance, endpoint: &str, granted: bool) -> Result<(), Failure> {
    let endpoint: Endpoint = endpoint.parse().map_err(|error| Failure {
        step: "changing the network".into(),
        error: format!("`{endpoint}` is not an endpoint: {error}"),
        errno: None,
    })?;
    instance.connect(&endpoint, granted)
}
