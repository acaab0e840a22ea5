//! What risk does over time.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(1_800_000_000);

fn entry(adds: u8, half_life: Option<Duration>, cap: u8) -> RiskEntry {
    RiskEntry {
        half_life,
        cap,
        ..RiskEntry::adding(adds)
    }
}

fn risk() -> Risk {
    let sensors = BTreeMap::from([
        ("denied-path".to_owned(), entry(10, Some(MINUTE), 100)),
        ("denied-syscall".to_owned(), entry(20, Some(MINUTE), 30)),
        ("stale-evidence".to_owned(), entry(40, None, 100)),
    ]);
    Risk::new(RiskModel {
        sensors,
        falls_after: Duration::ZERO,
    })
}

/// The same, falling only after five seconds.
fn calm() -> Risk {
    let mut risk = risk();
    risk.model.falls_after = DWELL;
    risk
}

const DWELL: Duration = Duration::from_secs(5);

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
        heard: true,
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
    risk.adopt(RiskModel {
        sensors,
        falls_after: Duration::ZERO,
    });
    assert_eq!(risk.score(START), 5);
}

#[test]
fn a_fall_counts_only_after_it_stayed_below_and_a_rise_at_once() {
    let mut risk = calm();
    risk.hold("stale-evidence", START);
    assert_eq!(risk.score(START), 40);
    risk.release("stale-evidence", START + MINUTE);
    let just_before = START + MINUTE + DWELL - Duration::from_nanos(1);
    assert_eq!(risk.score(just_before), 40);
    assert_eq!(
        risk.next_change(START + MINUTE),
        Some(START + MINUTE + DWELL)
    );
    assert_eq!(risk.score(START + MINUTE + DWELL), 0);
    risk.hold("stale-evidence", START + 2 * MINUTE);
    assert_eq!(risk.score(START + 2 * MINUTE), 40);
}

#[test]
fn a_storm_at_every_moment_is_remembered_in_as_many_entries_as_there_are_scores() {
    let mut risk = calm();
    risk.model.falls_after = 1000 * MINUTE;
    for n in 0..10_000_u64 {
        risk.signal("denied-path", START + Duration::from_secs(n));
        risk.release("stale-evidence", START + Duration::from_secs(n));
    }
    assert!(risk.peaks.len() <= 101);
}

#[test]
fn explicit_points_of_a_sensor_without_half_life_hold_until_they_are_taken_back() {
    let mut risk = risk();
    risk.hold("stale-evidence", START);
    risk.add("stale-evidence", 70, START);
    assert_eq!(risk.score(START + 1000 * MINUTE), 70, "the higher of both");
    risk.relieve("stale-evidence", 20, START + 1000 * MINUTE);
    assert_eq!(risk.score(START + 1000 * MINUTE), 50);
    risk.relieve("stale-evidence", 100, START + 1000 * MINUTE);
    assert_eq!(
        risk.score(START + 1000 * MINUTE),
        40,
        "what is true still counts"
    );
}

#[test]
fn points_do_not_fade_below_the_floor_of_a_sensor_that_was_heard() {
    let mut risk = risk();
    let sensor = risk.model.sensors.get_mut("denied-path").unwrap();
    sensor.floor = 4;
    assert_eq!(risk.score(START), 0);
    risk.signal("denied-path", START);
    assert_eq!(risk.score(START), 10);
    assert_eq!(risk.score(START + 1000 * MINUTE), 4);
    assert_eq!(risk.next_change(START + 1000 * MINUTE), None);
}

const NAMES: [&str; 3] = ["denied-path", "denied-syscall", "stale-evidence"];

/// What a sensor does, and how many milliseconds after the one before.
type Step = (usize, u8, u64);

fn take(risk: &mut Risk, (sensor, what, _): Step, now: Duration) {
    match what {
        0 => risk.signal(NAMES[sensor], now),
        1 => risk.hold(NAMES[sensor], now),
        2 => risk.release(NAMES[sensor], now),
        3 => risk.add(NAMES[sensor], 7, now),
        _ => risk.relieve(NAMES[sensor], 7, now),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((0..3_usize, 0..5_u8, 0..20_000_u64), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_more_signal_never_lowers_the_score(steps in steps(), extra in 0..3_usize, at in 0..40_usize) {
        let (mut less, mut more) = (calm(), calm());
        let mut now = START;
        for (n, step) in steps.into_iter().enumerate() {
            now += Duration::from_millis(step.2);
            if n == at {
                more.signal(NAMES[extra], now);
            }
            take(&mut less, step, now);
            take(&mut more, step, now);
            for later in [Duration::ZERO, DWELL / 2, DWELL, MINUTE] {
                prop_assert!(more.score(now + later) >= less.score(now + later));
            }
        }
    }

    #[test]
    fn the_score_follows_the_sum_within_its_window_and_cannot_flap(steps in steps(), threshold in 1..100_u8) {
        let mut risk = calm();
        let tick = Duration::from_millis(250);
        let (mut now, mut next) = (START, START);
        let mut seen: Vec<(Duration, u8)> = Vec::new();
        let mut turns = Vec::new();
        let mut above = false;
        let mut look = |risk: &Risk, now: Duration| -> Result<(), TestCaseError> {
            let score = risk.score(now);
            seen.push((now, risk.sum(now)));
            let highest = |window: Duration| {
                seen.iter().filter(|(at, _)| *at + window >= now).map(|(_, sum)| *sum).max()
            };
            prop_assert!(Some(score) >= highest(DWELL - Duration::from_nanos(1)));
            // One tick more, as the sum is looked at once in a tick.
            prop_assert!(Some(score) <= highest(2 * DWELL + tick));
            if (score >= threshold) != above {
                above = !above;
                turns.push(now);
            }
            Ok(())
        };
        for step in steps {
            now += Duration::from_millis(step.2);
            while next < now {
                look(&risk, next)?;
                next += tick;
            }
            look(&risk, now)?;
            take(&mut risk, step, now);
            look(&risk, now)?;
        }
        // Each pair begins with a rise: what was reached holds for the window at least.
        for turns in turns.chunks(2) {
            if let [rise, fall] = turns {
                prop_assert!(*fall - *rise >= DWELL, "{rise:?} {fall:?}");
            }
        }
        let bound = (now - START).as_nanos() / DWELL.as_nanos() + 1;
        prop_assert!((turns.len() as u128).div_ceil(2) <= bound);
    }

    #[test]
    fn the_same_signals_give_the_same_score_which_only_falls(
        steps in proptest::collection::vec((0..3_usize, 0..5_u8, 0..200_000_u64), 0..40)
    ) {
        let (mut one, mut two) = (risk(), risk());
        let mut now = START;
        for step in steps {
            now += Duration::from_millis(step.2);
            take(&mut one, step, now);
            take(&mut two, step, now);
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
