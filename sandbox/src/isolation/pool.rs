//! Sandboxes made beforehand, each used once.
//!
//! What a start costs is nearly all making the sandbox; executing the program is the rest. A pool makes
//! sandboxes of one floor while nobody waits: namespaces, mounts, cgroups, Landlock and filter are in
//! force, the workload is confined and waits for the word. Whoever launches that floor gets one of them.
//!
//! A sandbox is never used a second time, so nothing is carried from one run to the next. Granted trees
//! are those that stood at their path when the sandbox was made, not when it is started.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::cgroup::Limits;
use super::container::Parked;
use super::floor::Floor;
use super::nursery::Nursery;
use super::spawner::Failure;
use super::{Backend, Instance, Launch};

/// For how long whoever took a sandbox is left alone before the next one is made.
const HEAD_START: Duration = Duration::from_millis(5);

/// Sandboxes of one floor that wait to be used.
///
/// Dropping it removes those that are left; those in use are not touched.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    maker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    nursery: Nursery,
    floor: Floor,
    limits: Limits,
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    parked: Vec<Parked>,
    /// Why the last one could not be made; nothing more is made then.
    failed: Option<Failure>,
    /// One was just taken: who took it comes first.
    yields: bool,
    over: bool,
}

/// What a session launches on to get a sandbox of a [`Pool`].
#[derive(Debug)]
pub struct Pooled(Arc<Shared>);

/// Has the next sandbox made when it is dropped: when one that was taken has been started, or never will.
#[derive(Debug)]
pub(super) struct Refill(Arc<Shared>);

impl Drop for Refill {
    fn drop(&mut self) {
        self.0.lock().yields = true;
        self.0.changed.notify_all();
    }
}

impl Pool {
    /// Keeps so many sandboxes of a floor ready, made by a thread of its own.
    ///
    /// # Errors
    ///
    /// [`Failure`] when the floor has vaults, which are opened for one run only; or the thread cannot be
    /// started.
    pub fn start(
        nursery: Nursery,
        floor: Floor,
        limits: Limits,
        size: usize,
    ) -> Result<Self, Failure> {
        if !floor.rootfs.data.is_empty() {
            return Err(Failure {
                step: "filling the pool".into(),
                error:
                    "a floor with vaults cannot be made beforehand: their keys are released for \
                        one run"
                        .into(),
                errno: None,
            });
        }
        let shared = Arc::new(Shared {
            nursery,
            floor,
            limits,
            size,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let maker = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("sandbox-pool".into())
                .spawn(move || shared.fill())
                .map_err(Failure::at("starting the pool's thread"))?
        };
        Ok(Self {
            shared,
            maker: Some(maker),
        })
    }

    /// A backend that launches one sandbox of this pool: made beforehand if there is one and the floor
    /// and limits are the pool's, else made now.
    pub fn backend(&self) -> Pooled {
        Pooled(Arc::clone(&self.shared))
    }

    /// Waits until as many are ready as the pool keeps.
    ///
    /// # Errors
    ///
    /// The [`Failure`] for which none can be made.
    pub fn wait_until_full(&self) -> Result<(), Failure> {
        let mut state = self.shared.lock();
        while state.parked.len() < self.shared.size {
            if let Some(failure) = &state.failed {
                return Err(failure.clone());
            }
            state = self.shared.wait(state);
        }
        Ok(())
    }
}

impl Pool {
    /// Makes no more: a backend that launches one of those that are there, which then are nobody else's.
    pub fn last(mut self) -> Pooled {
        self.end();
        Pooled(Arc::clone(&self.shared))
    }

    /// Ends the thread. False if it was ended before.
    fn end(&mut self) -> bool {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        let maker = self.maker.take();
        maker.is_some_and(|maker| maker.join().is_ok())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.end() {
            let left = std::mem::take(&mut self.shared.lock().parked);
            drop(left);
        }
    }
}

impl Shared {
    fn fill(&self) {
        let mut state = self.lock();
        while !state.over {
            if state.parked.len() >= self.size || state.failed.is_some() {
                state = self.wait(state);
                continue;
            }
            if std::mem::take(&mut state.yields) {
                // Making the next takes from the start of this one what both need, CPUs above all.
                let waited = self.changed.wait_timeout(state, HEAD_START);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            drop(state);
            let made = self.park();
            state = self.lock();
            match made {
                Ok(parked) => state.parked.push(parked),
                Err(failure) => state.failed = Some(failure),
            }
            self.changed.notify_all();
        }
    }

    fn park(&self) -> Result<Parked, Failure> {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(Failure::at("opening /dev/null"))?;
        let none = &mut |_: &str, _| Err(Failure::at("serving a vault")(unserved()));
        self.nursery
            .container()?
            .park(&self.floor, &self.limits, [null.as_fd(); 3], none)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A list is whole at any time, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Pooled {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        let Self(shared) = *self;
        if *launch.floor == shared.floor && launch.limits == shared.limits {
            let parked = shared.lock().parked.pop();
            if let Some(parked) = parked {
                return parked.wake(launch, Some(Refill(shared)));
            }
        }
        Box::new(shared.nursery.container()?).launch(launch)
    }
}

fn unserved() -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
