//! Times in the order in which they were first measured, and what they come to.

use std::time::{Duration, Instant};

use crate::Result;

/// Times of several ways to do the same thing; the first is what the others are compared with.
#[derive(Default)]
pub struct Table(Vec<(&'static str, Vec<Duration>)>);

impl Table {
    pub fn add(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        work()?;
        self.push(name, began.elapsed());
        Ok(())
    }

    pub fn push(&mut self, name: &'static str, time: Duration) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, times)) => times.push(time),
            None => self.0.push((name, vec![time])),
        }
    }

    pub fn print(&mut self, rounds: u32) {
        let rows: Vec<_> = self
            .0
            .iter_mut()
            .map(|(name, times)| (*name, median(times)))
            .collect();
        let Some(&(_, plain)) = rows.first() else {
            return;
        };
        println!(
            "{:<40} {:>10} {:>8}   ({rounds} rounds in turns)",
            "", "median µs", "ratio"
        );
        for (name, time) in rows {
            println!("{name:<40} {time:>10.0} {:>8.2}", time / plain);
        }
    }
}

/// What a cold start spends, as its supervisor sees it: the times at which each step was over.
#[derive(Default)]
pub struct Steps(Vec<[Duration; 4]>);

impl Steps {
    pub fn push(&mut self, ends: [Duration; 4]) {
        self.0.push(ends);
    }

    pub fn print(&self) {
        const NAMES: [&str; 4] = [
            "cgroups and spawner",
            "namespaces to filter, and the word that all is in force",
            "start, execution, end known",
            "nothing left",
        ];
        println!("of a cold start:");
        for (step, name) in NAMES.iter().enumerate() {
            let begins =
                |ends: &[Duration; 4]| step.checked_sub(1).map_or(Duration::ZERO, |s| ends[s]);
            let mut times: Vec<_> = self
                .0
                .iter()
                .map(|ends| ends[step] - begins(ends))
                .collect();
            println!("  {:>6.0} µs  {name}", median(&mut times));
        }
    }
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, |time| time.as_secs_f64() * 1e6)
}
