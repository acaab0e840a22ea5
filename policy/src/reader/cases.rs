//! From TOML to cases: facts, and what is expected under them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::value::Section;
use super::{Reader, parse};
use crate::diagnostic::{Diagnostic, nearest, position};
use crate::facts::{Facts, Tcb, Tier};
use crate::grant::Grant;
use crate::schema;

/// One case, as a file has it.
#[derive(Clone, Debug)]
pub(crate) struct CaseContents {
    pub(crate) name: String,
    /// The line on which it begins.
    pub(crate) line: usize,
    pub(crate) facts: Facts,
    /// What is named, and whether it is expected to hold; never empty.
    pub(crate) expected: BTreeMap<Grant, bool>,
}

/// The most cases of a file.
const MOST_CASES: usize = 4096;

/// Reads a file of cases about these grants.
pub(crate) fn read(source: &str, grants: &[Grant]) -> Result<Vec<CaseContents>, Vec<Diagnostic>> {
    let document = parse(source)?;
    let mut reader = Reader::new(source);
    let cases = reader.cases(document.get_ref(), grants);
    match reader.problems.is_empty() {
        true => Ok(cases),
        false => Err(reader.problems),
    }
}

impl<'s> Reader<'s> {
    fn cases(&mut self, table: &DeTable<'s>, grants: &[Grant]) -> Vec<CaseContents> {
        let root = Section {
            place: String::new(),
            span: 0..0,
            table,
        };
        self.known(&root, &["facts", "case"]);
        let shared = self.section(&root, "facts");
        let shared = shared.map_or(Facts::unknown(), |s| self.facts(&s, Facts::unknown()));
        let known: BTreeMap<String, &Grant> = grants
            .iter()
            .map(|grant| (grant.to_string(), grant))
            .collect();
        let entries = self.array(&root, "case").unwrap_or_default();
        if entries.is_empty() && root.get("case").is_none_or(|(_, v)| v.is_array()) {
            self.error(0..0, "there are no cases: nothing would be tested")
                .help(
                    "[[case]]\nname = \"…\"\nfacts = { risk = 20 }\nexpect = { denied = [\"…\"] }",
                );
        }
        if entries.len() > MOST_CASES {
            self.error(0..0, format!("there are more than {MOST_CASES} cases"));
            return Vec::new();
        }
        let mut cases = Vec::new();
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (span, entry) in entries {
            let DeValue::Table(table) = entry else {
                self.wrong(span, "case", "tables", entry);
                continue;
            };
            let section = Section {
                place: "case".to_owned(),
                span,
                table,
            };
            if let Some(case) = self.case(&section, &shared, &known) {
                if let Some(line) = names.insert(case.name.clone(), case.line) {
                    let name = case.name.escape_debug();
                    self.error(
                        section.span.clone(),
                        format!("another case is called `{name}`"),
                    )
                    .help(&format!("it begins on line {line}"));
                }
                cases.push(case);
            }
        }
        cases
    }

    fn case(
        &mut self,
        section: &Section<'_, 's>,
        shared: &Facts,
        known: &BTreeMap<String, &Grant>,
    ) -> Option<CaseContents> {
        self.known(section, &["name", "facts", "expect"]);
        let name = self.needed(section, "name", "`name = \"withdrawn at risk 20\"`");
        if let Some((span, text)) = &name
            && (text.trim().is_empty() || text.chars().any(char::is_control))
        {
            self.error(span.clone(), "a case needs a name in one line");
        }
        let facts = self.section(section, "facts");
        let facts = facts.map_or(shared.clone(), |s| self.facts(&s, shared.clone()));
        if section.get("expect").is_none() {
            self.missing(section, "expect", "`expect = { denied = [\"…\"] }`");
        }
        let expect = self.section(section, "expect")?;
        self.known(&expect, &["granted", "denied"]);
        let mut expected = BTreeMap::new();
        let mut named = 0_usize;
        for (key, holds) in [("granted", true), ("denied", false)] {
            for (span, text) in self.strings(&expect, key).unwrap_or_default() {
                named += 1;
                let Some(grant) = self.grant(span.clone(), text, known) else {
                    continue;
                };
                if expected.insert(grant, holds).is_some() {
                    self.twice(span, text);
                }
            }
        }
        if named == 0 {
            self.error(expect.span.clone(), "this case expects nothing")
                .help("name grants: `expect = { granted = [\"live\"] }`");
        }
        Some(CaseContents {
            name: name?.1.to_owned(),
            line: position(self.source, section.span.start).0,
            facts,
            expected,
        })
    }

    fn grant(
        &mut self,
        span: Range<usize>,
        text: &str,
        known: &BTreeMap<String, &Grant>,
    ) -> Option<Grant> {
        if let Some(grant) = known.get(text) {
            return Some((*grant).clone());
        }
        let help = match nearest(text, known.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let some: Vec<&str> = known.keys().map(String::as_str).take(12).collect();
                let more = if known.len() > some.len() {
                    ", …"
                } else {
                    ""
                };
                format!("the policy can grant `{}`{more}", some.join("`, `"))
            }
        };
        let message = format!("no table of the policy has `{}`", text.escape_debug());
        self.error(span, message).help(&help);
        None
    }

    /// Facts, over those that hold where nothing is said.
    fn facts(&mut self, section: &Section<'_, 's>, mut facts: Facts) -> Facts {
        self.known(section, &schema::CONTEXT);
        if let Some(risk) = self.integer(section, "risk", 0..=100) {
            facts.risk = u8::try_from(risk).unwrap_or(100);
        }
        if let Some(tier) = self.word(section, "tier", Tier::ALL, Tier::as_str) {
            facts.tier = tier;
        }
        if let Some(tcb) = self.word(section, "tcb", Tcb::ALL, Tcb::as_str) {
            facts.tcb = tcb;
        }
        facts.simulated = self.flag(section, "simulated").or(facts.simulated);
        facts.debug = self.flag(section, "debug").or(facts.debug);
        if let Some(age) = self.integer(section, "evidence_age", 0..=i64::MAX as u64) {
            facts.evidence_age = Some(Duration::from_secs(age));
        }
        if let Some(gaps) = self.strings(section, "gaps") {
            facts.gaps = gaps.into_iter().map(|(_, gap)| gap.to_owned()).collect();
        }
        facts
    }

    fn word<T: Copy>(
        &mut self,
        section: &Section<'_, 's>,
        key: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Option<T> {
        let (span, text) = self.string(section, key)?;
        let found = all.iter().copied().find(|value| name(*value) == text);
        if found.is_none() {
            let names: Vec<&str> = all.iter().map(|value| name(*value)).collect();
            self.unknown(span, key, text, &names);
        }
        found
    }

    fn flag(&mut self, section: &Section<'_, 's>, key: &str) -> Option<bool> {
        let (span, value) = section.get(key)?;
        if let DeValue::Boolean(flag) = value {
            return Some(*flag);
        }
        self.wrong(span, key, "true or false", value);
        None
    }
}
