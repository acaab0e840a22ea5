//! `[risk]`: the sensors, their weights, and what they are asked to look for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Reader;
use super::value::Section;
use crate::sensors::{LooksFor, RiskEntry, SENSORS};
use crate::units;
use crate::window::Window;

/// How long risk has to stay below its score before the score falls, unless the policy says otherwise.
const FALLS_AFTER: Duration = Duration::from_secs(5);
/// Share of the time, in percent, from which on tasks that wait are pressure.
const STALL: u64 = 20;

/// What holds without a table.
pub(super) fn default() -> (BTreeMap<String, RiskEntry>, Duration) {
    (BTreeMap::new(), FALLS_AFTER)
}

impl<'s> Reader<'s> {
    pub(super) fn risk(
        &mut self,
        section: &Section<'_, 's>,
    ) -> (BTreeMap<String, RiskEntry>, Duration) {
        let mut risk = BTreeMap::new();
        let falls_after = self.duration(section, "falls-after").unwrap_or(FALLS_AFTER);
        for (key, value) in section.table.iter() {
            let name = key.get_ref().as_ref();
            if name == "falls-after" {
                continue;
            }
            if !SENSORS.contains(&name) {
                self.unknown_sensor(key.span(), name);
            }
            let Some(entry) = self.subsection(section, name, value.span(), value.get_ref()) else {
                continue;
            };
            let mut keys = vec!["adds", "half-life", "cap", "floor"];
            keys.extend(own_keys(name));
            self.known(&entry, &keys);
            if entry.get("adds").is_none() {
                self.missing(&entry, "adds", "`adds = 10`");
            }
            let adds = self.integer(&entry, "adds", 0..=100);
            let cap = self.integer(&entry, "cap", 0..=100).unwrap_or(100);
            let floor = self.integer(&entry, "floor", 0..=100).unwrap_or(0);
            if let Some((span, _)) = entry.get("floor").filter(|_| floor > cap) {
                self.error(span, "`floor` is above `cap`");
            }
            let half_life = self.duration(&entry, "half-life");
            let looks_for = self.looks_for(name, &entry);
            if let Some((adds, looks_for)) = adds.zip(looks_for) {
                // All are at most 100.
                let entry = RiskEntry {
                    adds: adds as u8,
                    half_life,
                    cap: cap as u8,
                    floor: floor as u8,
                    looks_for,
                };
                risk.insert(name.to_owned(), entry);
            }
        }
        (risk, falls_after)
    }

    /// What a sensor is asked to look for; `None` if that cannot be read, which is noted.
    fn looks_for(&mut self, sensor: &str, entry: &Section<'_, 's>) -> Option<LooksFor> {
        match sensor {
            "lease-use" => {
                if own_keys(sensor).iter().all(|key| entry.get(key).is_none()) {
                    self.missing(entry, "volume", "`volume = \"1GiB\"`, `rate` or `objects`");
                    return None;
                }
                Some(LooksFor::Use {
                    volume: self.bytes(entry, "volume"),
                    rate: self.bytes(entry, "rate"),
                    objects: self.integer(entry, "objects", 0..=u64::from(u32::MAX)),
                })
            }
            "resource-pressure" => {
                let stall = self.integer(entry, "stall", 1..=100).unwrap_or(STALL);
                Some(LooksFor::Stall(stall as u8))
            }
            "new-exec" => {
                let mut known = Vec::new();
                for (span, path) in self.strings(entry, "known").unwrap_or_default() {
                    known.push(self.sandbox_path(span, path)?);
                }
                Some(LooksFor::Known(known))
            }
            "time-window" => {
                let (span, text) = self.needed(
                    entry,
                    "outside",
                    "`outside = \"mon-fri 08:00-18:00\"` (UTC)",
                )?;
                match text.parse::<Window>() {
                    Ok(window) => Some(LooksFor::Outside(window)),
                    Err(why) => {
                        let text = text.escape_debug();
                        self.error(span, format!("`{text}` is not a time window: {why}"))
                            .help("write hours in UTC: `08:00-18:00`, `mon-fri 08:00-18:00`");
                        None
                    }
                }
            }
            "external" => {
                let (span, text) =
                    self.needed(entry, "socket", "`socket = \"/run/casemate/reports.sock\"`")?;
                let socket = self.host_path(span, text)?;
                let token = match self.string(entry, "token") {
                    Some((span, text)) => Some(self.host_path(span, text)?),
                    None => None,
                };
                Some(LooksFor::Reports {
                    socket,
                    uids: self.user_ids(entry)?,
                    token,
                })
            }
            _ => Some(LooksFor::Default),
        }
    }

    /// A size in bytes, more than none.
    fn bytes(&mut self, section: &Section<'_, 's>, key: &str) -> Option<u64> {
        let (span, text) = self.string(section, key)?;
        let size = units::size(text).filter(|size| *size > 0);
        if size.is_none() {
            self.error(span, format!("`{}` is not a size", text.escape_debug()))
                .help(units::SIZE_HELP);
        }
        size
    }

    fn user_ids(&mut self, section: &Section<'_, 's>) -> Option<Vec<u32>> {
        let mut uids = Vec::new();
        for (span, value) in self.array(section, "uids").unwrap_or_default() {
            let uid = match value {
                toml::de::DeValue::Integer(integer) => {
                    u32::from_str_radix(integer.as_str(), integer.radix()).ok()
                }
                _ => None,
            };
            match uid {
                Some(uid) => uids.push(uid),
                None => {
                    self.error(span, "`uids` has an entry that is no user id")
                        .help("`uids = [1000]`");
                    return None;
                }
            }
        }
        Some(uids)
    }
}

/// Keys that only this sensor has.
fn own_keys(sensor: &str) -> &'static [&'static str] {
    match sensor {
        "lease-use" => &["volume", "rate", "objects"],
        "resource-pressure" => &["stall"],
        "new-exec" => &["known"],
        "time-window" => &["outside"],
        "external" => &["socket", "uids", "token"],
        _ => &[],
    }
}
