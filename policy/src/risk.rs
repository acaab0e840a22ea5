//! How signals raise risk, and how it fades.
//!
//! Each sensor has one accumulator, so that a storm of signals costs no memory. All arithmetic is
//! on integers: the same signals at the same times give the same score on every machine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::tables::RiskEntry;

/// What each sensor adds, from `[risk]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RiskModel {
    sensors: BTreeMap<String, RiskEntry>,
}

impl From<&Bundle> for RiskModel {
    fn from(bundle: &Bundle) -> Self {
        RiskModel {
            sensors: bundle.tables().risk.clone(),
        }
    }
}

/// The risk of one session: a sum over its sensors, 0..=100.
///
/// Times are since the Unix epoch, and should not run backwards; if they do, nothing fades.
#[derive(Clone, Debug, Serialize)]
pub struct Risk {
    #[serde(skip)]
    model: RiskModel,
    /// One entry for each sensor of the model that was ever heard of.
    levels: BTreeMap<String, Level>,
}

/// What a sensor contributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Level {
    /// Points at `since`, in units of 2⁻³² of a point.
    points: u64,
    since: Duration,
    /// Whether its cause is true now.
    held: bool,
}

impl Risk {
    /// Begins without risk.
    pub fn new(model: RiskModel) -> Self {
        Risk {
            model,
            levels: BTreeMap::new(),
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

    /// Notes that a sensor's cause is true from now on: its points hold.
    pub fn hold(&mut self, sensor: &str, now: Duration) {
        self.change(sensor, now, |_, level| level.held = true);
    }

    /// Notes that a sensor's cause is no longer true: its points are gone, or begin to fade.
    pub fn release(&mut self, sensor: &str, now: Duration) {
        self.change(sensor, now, |entry, level| {
            if level.held && entry.half_life.is_some() {
                level.points = level.points.max(held_points(entry));
            }
            level.held = false;
        });
    }

    /// The score at a time, 0..=100: the sum of [`Risk::contributions`].
    pub fn score(&self, now: Duration) -> u8 {
        self.sum(now).min(100) as u8
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
            .max()?;
        // Eight half-lives take 100 points below one half.
        let mut late = now.checked_add(longest.checked_mul(8)?)?;
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
        let Some(entry) = self.model.sensors.get(sensor) else {
            return;
        };
        let level = self.levels.entry(sensor.to_owned()).or_default();
        level.points = faded(level, entry, now);
        level.since = level.since.max(now);
        change(entry, level);
    }

    fn parts(&self, now: Duration) -> impl Iterator<Item = (&str, u8)> {
        self.levels.iter().filter_map(move |(sensor, level)| {
            let entry = self.model.sensors.get(sensor)?;
            let held = if level.held { held_points(entry) } else { 0 };
            Some((sensor.as_str(), rounded(faded(level, entry, now).max(held))))
        })
    }

    fn sum(&self, now: Duration) -> u32 {
        self.parts(now).map(|(_, points)| u32::from(points)).sum()
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
    // Without a half-life there is nothing but what is held.
    let Some(half_life) = entry.half_life else {
        return 0;
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const START: Duration = Duration::from_secs(1_800_000_000);

    fn entry(adds: u8, half_life: Option<Duration>, cap: u8) -> RiskEntry {
        RiskEntry {
            adds,
            half_life,
            cap,
        }
    }

    fn risk() -> Risk {
        let sensors = BTreeMap::from([
            ("denied-path".to_owned(), entry(10, Some(MINUTE), 100)),
            ("denied-syscall".to_owned(), entry(20, Some(MINUTE), 30)),
            ("stale-evidence".to_owned(), entry(40, None, 100)),
        ]);
        Risk::new(RiskModel { sensors })
    }

    #[test]
    fn a_signal_adds_and_fades_by_half() {
        let mut risk = risk();
        risk.signal("denied-path", START);
        assert_eq!(risk.score(START), 10);
        risk.signal("denied-path", START + Duration::from_millis(1));
        assert_eq!(risk.score(START + Duration::from_millis(1)), 20);
        assert_eq!(risk.score(START + MINUTE), 10);
        assert_eq!(risk.score(START + 2 * MINUTE), 5);
        assert_eq!(risk.score(START + 100 * MINUTE), 0);
    }

    #[test]
    fn decay_is_that_of_two_to_the_minus_x() {
        let entry = entry(100, Some(MINUTE), 100);
        let level = Level {
            points: fixed(100),
            since: START,
            held: false,
        };
        for seconds in 0..600 {
            let exact = 100.0 * (-(seconds as f64) / 60.0).exp2();
            let ours =
                faded(&level, &entry, START + Duration::from_secs(seconds)) as f64 / 2_f64.powi(32);
            assert!((exact - ours).abs() < 1e-4, "{seconds}: {exact} {ours}");
        }
    }

    #[test]
    fn a_held_cause_does_not_fade_until_it_is_released() {
        let mut risk = risk();
        risk.hold("stale-evidence", START);
        risk.hold("stale-evidence", START + MINUTE);
        assert_eq!(risk.score(START + 1000 * MINUTE), 40);
        risk.release("stale-evidence", START + 1000 * MINUTE);
        assert_eq!(risk.score(START + 1000 * MINUTE), 0);

        risk.hold("denied-path", START + 1000 * MINUTE);
        assert_eq!(risk.score(START + 2000 * MINUTE), 10);
        risk.release("denied-path", START + 2000 * MINUTE);
        assert_eq!(risk.score(START + 2001 * MINUTE), 5);
    }

    #[test]
    fn a_signal_of_a_sensor_without_half_life_holds() {
        let mut risk = risk();
        risk.signal("stale-evidence", START);
        assert_eq!(risk.score(START + 1000 * MINUTE), 40);
    }

    #[test]
    fn a_storm_is_bounded_in_points_and_in_memory() {
        let mut risk = risk();
        for n in 0..100_000_u64 {
            risk.signal("denied-syscall", START + Duration::from_nanos(n));
            risk.signal("denied-path", START);
            risk.signal(&format!("invented-{n}"), START);
        }
        assert_eq!(risk.levels.len(), 2);
        let soon = START + Duration::from_millis(1);
        let expected = [
            ("denied-path".to_owned(), 100),
            ("denied-syscall".to_owned(), 30),
        ];
        assert_eq!(risk.contributions(soon), expected);
        assert_eq!(risk.score(soon), 100);
    }

    #[test]
    fn a_sensor_that_the_policy_does_not_weigh_adds_nothing() {
        let mut risk = risk();
        risk.signal("operator", START);
        risk.hold("operator", START);
        assert_eq!(risk.score(START), 0);
        assert!(risk.contributions(START).is_empty());
    }

    #[test]
    fn time_that_runs_backwards_neither_fades_nor_panics() {
        let mut risk = risk();
        risk.signal("denied-path", START);
        assert_eq!(risk.score(Duration::ZERO), 10);
        risk.signal("denied-path", Duration::ZERO);
        assert_eq!(risk.score(START), 20);
        assert_eq!(risk.score(Duration::MAX), 0);
        assert_eq!(risk.next_change(Duration::MAX), None);
    }

    #[test]
    fn the_next_change_is_the_first_lower_score() {
        let mut risk = risk();
        assert_eq!(risk.next_change(START), None);
        risk.hold("stale-evidence", START);
        assert_eq!(risk.next_change(START), None);
        risk.signal("denied-path", START);
        let mut now = START;
        let mut scores = vec![risk.score(now)];
        while let Some(next) = risk.next_change(now) {
            assert!(next > now);
            assert_eq!(risk.score(next - Duration::from_nanos(1)), risk.score(now));
            now = next;
            scores.push(risk.score(now));
        }
        assert_eq!(scores, [50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40]);
    }

    #[test]
    fn the_next_change_of_a_saturated_score_is_below_a_hundred() {
        let mut risk = risk();
        for _ in 0..20 {
            risk.signal("denied-path", START);
        }
        risk.signal("denied-syscall", START);
        risk.hold("stale-evidence", START);
        let next = risk.next_change(START).unwrap();
        assert_eq!(risk.score(START), 100);
        assert_eq!(risk.score(next), 99);
        assert!(next > START + MINUTE);
    }

    #[test]
    fn another_model_keeps_what_it_also_weighs() {
        let mut risk = risk();
        risk.signal("denied-path", START);
        risk.hold("stale-evidence", START);
        let sensors = BTreeMap::from([("denied-path".to_owned(), entry(50, Some(MINUTE), 5))]);
        risk.adopt(RiskModel { sensors });
        assert_eq!(risk.score(START), 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_same_signals_give_the_same_score_which_only_falls(
            steps in proptest::collection::vec((0..3_usize, 0..3_u8, 0..200_000_u64), 0..40)
        ) {
            let names = ["denied-path", "denied-syscall", "stale-evidence"];
            let (mut one, mut two) = (risk(), risk());
            let mut now = START;
            for (sensor, what, millis) in steps {
                now += Duration::from_millis(millis);
                for risk in [&mut one, &mut two] {
                    match what {
                        0 => risk.signal(names[sensor], now),
                        1 => risk.hold(names[sensor], now),
                        _ => risk.release(names[sensor], now),
                    }
                }
                // Looking changes nothing.
                let score = one.score(now);
                prop_assert!(score <= 100);
                prop_assert!(one.score(now + MINUTE / 7) <= score);
                prop_assert_eq!(
                    u32::from(score),
                    one.contributions(now).iter().map(|(_, points)| u32::from(*points)).sum::<u32>().min(100)
                );
            }
            prop_assert_eq!(
                serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap()
            );
        }
    }
}
