//! Sizes and durations as people write them: `512MiB`, `10m`.

use std::time::Duration;

/// Parses a size in bytes: digits and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return None,
    };
    number.checked_mul(scale)
}

/// Parses a duration: digits and one of `ms`, `s`, `m`, `h`, `d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let scale = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    number.checked_mul(scale).map(Duration::from_secs)
}

/// What a size looks like, for messages.
pub(crate) const SIZE_HELP: &str = "write digits and a unit: `512MiB` (B, KiB, MiB, GiB, TiB)";
/// What a duration looks like, for messages.
pub(crate) const DURATION_HELP: &str = "write digits and a unit: `10m` (ms, s, m, h, d)";

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_a_unit_and_must_fit() {
        assert_eq!(size("512MiB"), Some(512 << 20));
        assert_eq!(duration("10m"), Some(Duration::from_secs(600)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        for bad in [
            "",
            "512",
            "MiB",
            "-1MiB",
            "1.5GiB",
            "512MB",
            "512 MiB",
            "99999999999TiB",
        ] {
            assert_eq!(size(bad), None, "{bad}");
        }
        for bad in [
            "",
            "10",
            "m",
            "1min",
            "10 m",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
