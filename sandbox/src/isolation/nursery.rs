//! Where a program that starts many sandboxes gets them from.

use std::sync::{Arc, Mutex, PoisonError};

use super::cgroup::Cgroup;
use super::container::Container;
use super::namespace::Mappings;
use super::spawner::{Asked, Failure, Spawner};

/// A spawner that makes no sandbox, but forks the spawner of each.
///
/// [`Container::prepare`] executes this program anew, which takes longer than most of a start. A nursery
/// does so once, has one spawner forked ahead, and costs the same whatever memory the program uses.
#[derive(Debug)]
pub struct Nursery {
    spawner: Mutex<Ahead>,
    /// User namespaces that every sandbox can use, for granted trees of other owners.
    mappings: Arc<Mutex<Mappings>>,
}

#[derive(Debug)]
struct Ahead {
    spawner: Spawner,
    /// The next one, which was asked for.
    next: Option<Asked>,
}

impl Nursery {
    /// Starts the spawner.
    ///
    /// # Errors
    ///
    /// [`Failure`] when this program cannot be executed again.
    pub fn start() -> Result<Self, Failure> {
        let spawner = Spawner::start().map_err(Failure::at("starting the spawner"))?;
        let next = Some(spawner.ask_for_another()?);
        Ok(Self {
            spawner: Mutex::new(Ahead { spawner, next }),
            mappings: Arc::default(),
        })
    }

    /// Makes the cgroups and the spawner of one sandbox.
    ///
    /// # Errors
    ///
    /// [`Failure`] when the nursery's spawner is gone.
    pub fn container(&self) -> Result<Container, Failure> {
        let spawner = {
            // What panicked with the lock held left a question unanswered at worst, which is noticed.
            let mut ahead = self.spawner.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = ahead.take();
            ahead.next = ahead.spawner.ask_for_another().ok();
            taken?
        };
        Container::made_by(spawner, Cgroup::create(), Arc::clone(&self.mappings))
    }
}

impl Ahead {
    fn take(&mut self) -> Result<Spawner, Failure> {
        let asked = match self.next.take() {
            Some(asked) => asked,
            None => self.spawner.ask_for_another()?,
        };
        self.spawner.take_another(asked)
    }
}

impl Drop for Ahead {
    /// Ends the one that was forked ahead, too, and waits for it.
    fn drop(&mut self) {
        if let Some(asked) = self.next.take() {
            drop(self.spawner.take_another(asked));
        }
    }
}
