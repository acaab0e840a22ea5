//! How signals raise risk, and how it fades.
//!
//! ```text
//! signal, hold, release ─▶ a level for each sensor ─▶ sum ─▶ the highest of the last `falls-after` ─▶ score
//! ```
//!
//! **It cannot flap.** A rise counts at once. A fall counts only after the sum has stayed below for
//! `falls-after`: the score is never below any sum of the last `falls-after`, and never above every
//! sum of the last two. So a rule about risk is lost and regained at most once in that time, and n + 1
//! times in n of them.
//!
//! Each sensor has one accumulator, and the score's memory has at most one entry for each of its
//! values, so that a storm of signals costs no memory. All arithmetic is on integers: the same signals
//! at the same times give the same score on every machine.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::sensors::RiskEntry;

/// What each sensor adds, and how slowly the score falls, from `[risk]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RiskModel {
    sensors: BTreeMap<String, RiskEntry>,
    falls_after: Duration,
}

impl From<&Bundle> for RiskModel {
    fn from(bundle: &Bundle) -> Self {
        let mut sensors = bundle.tables().risk.clone();
        // What a person orders counts also under a policy that did not think of it.
        sensors
            .entry("operator".to_owned())
            .or_insert_with(|| RiskEntry::adding(0));
        RiskModel {
            sensors,
            falls_after: bundle.tables().risk_falls_after,
        }
    }
}

/// The risk of one session, 0..=100.
///
/// Times are since the Unix epoch, and should not run backwards; if they do, nothing fades.
#[derive(Clone, Debug, Serialize)]
pub struct Risk {
    #[serde(skip)]
    model: RiskModel,
    /// One entry for each sensor of the model that was ever heard of.
    levels: BTreeMap<String, Level>,
    /// Sums that were left behind, and until when each of them still counts: later ones are lower.
    peaks: VecDeque<Peak>,
    /// When a level was last changed.
    changed: Duration,
}

/// A sum that was left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Peak {
    score: u8,
    until: Duration,
}

/// What a sensor contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Level {
    /// Points at `since`, in units of 2⁻³² of a point.
    points: u64,
    since: Duration,
    /// Whether its cause is true now.
    held: bool,
    /// Whether it was ever heard of: its floor holds from then on.
    heard: bool,
}

impl Risk {
    /// Begins without risk.
    pub fn new(model: RiskModel) -> Self {
        Risk {
            model,
            levels: BTreeMap::new(),
            peaks: VecDeque::new(),
            changed: Duration::ZERO,
        }
    }

    /// Goes on under another model, keeping what the sensors it also knows have added.
    pub fn adopt(&mut self, model: RiskModel) {
        self.levels
            .retain(|sensor, _| model.sensors.contains_key(sensor));
        self.model = model;
    }

    /// Takes a momentary signal: its points are added, and fade.
    ///
    /// A sensor without a half-life has nothing to fade by: its points hold until
    /// [`Risk::release`]. A sensor that is not in `[risk]` adds nothing.
    pub fn signal(&mut self, sensor: &str, now: Duration) {
        self.change(sensor, now, |entry, level| match entry.half_life {
            Some(_) => level.points = level.points.saturating_add(fixed(entry.adds)),
            None => level.held = true,
        });
    }

    /// Takes a momentary signal that says itself how many points it adds. Without a half-life they hold
    /// until [`Risk::relieve`] or [`Risk::release`].
    pub fn add(&mut self, sensor: &str, points: u8, now: Duration) {
        self.change(sensor, now, |_, level| {
            level.points = level.points.saturating_add(fixed(points));
        });
    }

    /// Takes back points that the same sensor added; never more than are left of them.
    pub fn relieve(&mut self, sensor: &str, points: u8, now: Duration) {
        self.change(sensor, now, |_, level| {
            level.points = level.points.saturating_sub(fixed(points));
        });
    }

    /// Notes that a sensor's cause is true from now on: its points hold.
    pub fn hold(&mut self, sensor: &str, now: Duration) {
        self.change(sensor, now, |_, level| level.held = true);
    }

    /// Notes that a sensor's cause is no longer true: its points are gone, or begin to fade.
    pub fn release(&mut self, sensor: &str, now: Duration) {
        self.change(sensor, now, |entry, level| {
            if entry.half_life.is_none() {
                level.points = 0;
            } else if level.held {
                level.points = level.points.max(held_points(entry));
            }
            level.held = false;
        });
    }

    /// The score at a time, 0..=100: the highest sum of [`Risk::contributions`] within `falls-after`
    /// before it.
    pub fn score(&self, now: Duration) -> u8 {
        let left_behind = self
            .peaks
            .iter()
            .find(|peak| peak.until > now)
            .map_or(0, |peak| peak.score);
        // Since the last change the sum has only fallen, so its highest is at the window's beginning.
        let begin = now.saturating_sub(self.model.falls_after);
        self.sum(begin.max(self.changed).min(now)).max(left_behind)
    }

    /// What each sensor contributes at a time, in points, by name; only those that contribute.
    pub fn contributions(&self, now: Duration) -> Vec<(String, u8)> {
        self.parts(now)
            .filter(|(_, points)| *points > 0)
            .map(|(sensor, points)| (sensor.to_owned(), points))
            .collect()
    }

    /// The time (since the epoch, as `now` is) at which the score will next be lower by at least
    /// one, if nothing is signalled until then; `None` if it never will be.
    pub fn next_change(&self, now: Duration) -> Option<Duration> {
        let score = self.score(now);
        let longest = self
            .levels
            .keys()
            .filter_map(|sensor| self.model.sensors.get(sensor)?.half_life)
            .max()
            .unwrap_or_default();
        // Eight half-lives take 100 points below one half, and peaks count for two `falls-after` at most.
        let waiting = self.model.falls_after.checked_mul(2)?;
        let mut late = now
            .checked_add(longest.checked_mul(8)?)?
            .checked_add(waiting)?;
        if self.score(late) >= score {
            return None;
        }
        let mut early = now;
        while let Some(middle) = between(early, late) {
            if self.score(middle) < score {
                late = middle;
            } else {
                early = middle;
            }
        }
        Some(late)
    }

    fn change(&mut self, sensor: &str, now: Duration, change: impl FnOnce(&RiskEntry, &mut Level)) {
        if !self.model.sensors.contains_key(sensor) {
            return;
        }
        self.leave_behind(now);
        let Some(entry) = self.model.sensors.get(sensor) else {
            return;
        };
        let level = self.levels.entry(sensor.to_owned()).or_default();
        level.points = faded(level, entry, now);
        level.since = level.since.max(now);
        level.heard = true;
        change(entry, level);
        // Nothing above the cap is remembered, so that it fades from the cap on.
        level.points = level.points.min(fixed(entry.cap));
    }

    /// Remembers the highest sum of the last `falls-after` before the sum changes.
    fn leave_behind(&mut self, now: Duration) {
        let now = now.max(self.changed);
        let begin = now.saturating_sub(self.model.falls_after);
        let peak = Peak {
            score: self.sum(begin.max(self.changed)),
            until: now.saturating_add(self.model.falls_after),
        };
        self.changed = now;
        self.peaks.retain(|old| old.until > now);
        while self.peaks.back().is_some_and(|old| old.score <= peak.score) {
            self.peaks.pop_back();
        }
        if peak.score > 0 && peak.until > now {
            self.peaks.push_back(peak);
        }
    }

    fn parts(&self, now: Duration) -> impl Iterator<Item = (&str, u8)> {
        self.levels.iter().filter_map(move |(sensor, level)| {
            let entry = self.model.sensors.get(sensor)?;
            let held = if level.held { held_points(entry) } else { 0 };
            let floor = if level.heard {
                fixed(entry.floor.min(entry.cap))
            } else {
                0
            };
            let points = faded(level, entry, now).max(held).max(floor);
            Some((sensor.as_str(), rounded(points)))
        })
    }

    fn sum(&self, now: Duration) -> u8 {
        let sum: u32 = self.parts(now).map(|(_, points)| u32::from(points)).sum();
        sum.min(100) as u8
    }
}

fn fixed(points: u8) -> u64 {
    u64::from(points) << 32
}

fn held_points(entry: &RiskEntry) -> u64 {
    fixed(entry.adds.min(entry.cap))
}

/// To the nearest point; a level never exceeds its cap of at most 100.
fn rounded(points: u64) -> u8 {
    u8::try_from((points + (1 << 31)) >> 32)
        .unwrap_or(100)
        .min(100)
}

/// What is left of a level's points at a time.
fn faded(level: &Level, entry: &RiskEntry, now: Duration) -> u64 {
    // Without a half-life there is nothing to fade by.
    let Some(half_life) = entry.half_life else {
        return level.points.min(fixed(entry.cap));
    };
    let elapsed = now.saturating_sub(level.since).as_nanos();
    let half_life = half_life.as_nanos().max(1);
    let halvings = elapsed / half_life;
    if halvings >= 64 {
        return 0;
    }
    // The rest of a half-life as a binary fraction of 24 bits; below 2⁶⁴ s both factors fit.
    let fraction = elapsed % half_life * (1 << FRACTION_BITS) / half_life;
    // Capped here, so that another model's lower cap holds at once.
    let mut points = level.points.min(fixed(entry.cap)) >> halvings;
    for (bit, factor) in (0..FRACTION_BITS).rev().zip(HALVES) {
        if fraction >> bit & 1 == 1 {
            points = ((u128::from(points) * u128::from(factor)) >> 64) as u64;
        }
    }
    points
}

/// The instant in the middle, if there is one strictly between.
fn between(early: Duration, late: Duration) -> Option<Duration> {
    let half = late.checked_sub(early)? / 2;
    (!half.is_zero()).then(|| early + half)
}

const FRACTION_BITS: u32 = 24;

/// 2⁶⁴ · 2^(−2⁻ⁿ) for n from 1: what half, a quarter, an eighth … of a half-life leaves.
const HALVES: [u64; FRACTION_BITS as usize] = [
    0xb504_f333_f9de_6484,
    0xd744_fcca_d69d_6af4,
    0xeac0_c6e7_dd24_392e,
    0xf525_7d15_2486_cc2c,
    0xfa83_b2db_722a_033a,
    0xfd3e_0c0c_f486_c174,
    0xfe9e_115c_7b8f_884b,
    0xff4e_cb59_511e_c8a5,
    0xffa7_5652_1c8d_aed1,
    0xffd3_a751_c0f7_e10b,
    0xffe9_d2b2_f7db_2755,
    0xfff4_e91b_ff1b_8c3d,
    0xfffa_747e_a004_0664,
    0xfffd_3a3b_7814_eb53,
    0xfffe_9d1c_c60d_dab1,
    0xffff_4e8e_2587_9bfa,
    0xffff_a747_0363_f451,
    0xffff_d3a3_7dda_0313,
    0xffff_e9d1_bdf7_03ae,
    0xffff_f4e8_debe_025e,
    0xffff_fa74_6f4f_a150,
    0xffff_fd3a_37a3_f8b0,
    0xffff_fe9d_1bd1_065a,
    0xffff_ff4e_8de8_45ad,
];

#[cfg(test)]
mod tests;
