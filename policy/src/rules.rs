//! The rules of a bundle: split, parsed, validated against the schema, and placed in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, EntityUid, Policy, PolicyId, PolicySet,
    ResourceConstraint, Schema, ValidationMode, Validator,
};
use miette::Diagnostic as _;

use crate::diagnostic::{Diagnostic, Severity, is_invisible, nearest, position};
use crate::facts::{Tcb, Tier};
use crate::grant::Grant;
use crate::lexer::{Kind, Token, tokens};
use crate::reader::Placed;
use crate::{advice, plain, schema};

/// One rule, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// `@id`, or `rule 3`.
    pub(crate) name: String,
    pub(crate) permits: bool,
    /// The line of the file with the rule's `permit` or `forbid`.
    pub(crate) line: usize,
    /// The rule's bytes in the file (of the whole string, if that has escapes).
    pub(crate) span: Range<usize>,
    /// The rule in one line, without annotations and comments.
    pub(crate) text: String,
    /// Its policy id is the rule's index.
    pub(crate) policy: Policy,
    /// Whether the conditions speak of the context only: true of one grant, true of all.
    pub(crate) blind: bool,
    /// Whether each attribute of the context stands beside literals only: then a few values of it
    /// stand for all.
    pub(crate) plain: bool,
    /// Attributes of the context it mentions.
    pub(crate) mentions: BTreeSet<&'static str>,
    /// Integers its conditions mention.
    pub(crate) numbers: BTreeSet<i64>,
    /// Integers it compares `context.risk` with, and where they stand.
    pub(crate) thresholds: Vec<(i64, Range<usize>)>,
    /// Strings its conditions mention.
    pub(crate) words: BTreeSet<String>,
    /// Gaps it asks for, and where they stand.
    pub(crate) gaps: Vec<(String, Range<usize>)>,
}

/// The rules of a file and what Cedar's validator warns of.
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    pub(crate) warnings: Vec<Diagnostic>,
}

/// The most rules a bundle may have.
const MOST_RULES: usize = 4096;
/// The most tokens a rule may have; keeps the recursion of parser and evaluator shallow.
const MOST_TOKENS: usize = 2048;
/// The most conjunctions and disjunctions in a rule that is sliced and compiled.
const MOST_OPERATORS: usize = 32;
/// The deepest nesting of brackets, negations and conditionals in a rule.
const DEEPEST: usize = 32;

/// Parses and validates the rules, which may name these entities (type and identifier).
pub(crate) fn read(
    source: &str,
    cedar: &Placed<String>,
    schema: &Schema,
    entities: &BTreeSet<(String, String)>,
) -> Result<Rules, Vec<Diagnostic>> {
    let mut reader = Reader {
        place: Place::new(source, cedar),
        problems: Vec::new(),
    };
    let rules = reader.parse();
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    let warnings = reader.validate(&rules, schema);
    for rule in &rules {
        reader.refuse_strangers(rule, entities);
    }
    match reader.problems.is_empty() {
        true => Ok(Rules { rules, warnings }),
        false => Err(reader.problems),
    }
}

/// Where the text of the rules stands in the file.
struct Place<'a> {
    source: &'a str,
    text: &'a str,
    string: Range<usize>,
    /// The byte of the file at which the text begins, if it stands there literally.
    start: Option<usize>,
}

impl Rule {
    /// Whether it has few enough conjunctions and disjunctions to be gone through recursively.
    pub(crate) fn is_shallow(&self) -> bool {
        let operators = self.text.matches("&&").count() + self.text.matches("||").count();
        operators <= MOST_OPERATORS
    }

    /// Whether the head can match a grant.
    pub(crate) fn is_about(&self, grant: &Grant) -> bool {
        let action = |uid: &EntityUid| uid.id().unescaped() == grant.action.as_str();
        let is_kind = |kind: &EntityTypeName| kind.to_string() == grant.resource.kind().as_str();
        let resource = |uid: &EntityUid| {
            is_kind(uid.type_name()) && uid.id().unescaped() == grant.resource.id()
        };
        let of_action = match self.policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(uid) => action(&uid),
            ActionConstraint::In(uids) => uids.iter().any(action),
        };
        // No entity of the schema has parents, so `in` is the same as `==`.
        of_action
            && match self.policy.resource_constraint() {
                ResourceConstraint::Any => true,
                ResourceConstraint::Is(kind) => is_kind(&kind),
                ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => resource(&uid),
                ResourceConstraint::IsIn(kind, uid) => is_kind(&kind) && resource(&uid),
            }
    }
}

impl<'a> Place<'a> {
    fn new(source: &'a str, cedar: &'a Placed<String>) -> Self {
        let raw = source.get(cedar.span.clone()).unwrap_or_default();
        let skip = match raw {
            _ if raw.starts_with("\"\"\"\r\n") || raw.starts_with("'''\r\n") => 5,
            _ if raw.starts_with("\"\"\"\n") || raw.starts_with("'''\n") => 4,
            _ if raw.starts_with("\"\"\"") || raw.starts_with("'''") => 3,
            _ => 1,
        };
        let literal = raw
            .get(skip..)
            .is_some_and(|rest| rest.starts_with(cedar.value.as_str()));
        Place {
            source,
            text: &cedar.value,
            string: cedar.span.clone(),
            start: literal.then_some(cedar.span.start + skip),
        }
    }

    /// From bytes of the text to bytes of the file; the whole string if it has escapes.
    fn in_file(&self, span: &Range<usize>) -> Range<usize> {
        self.start.map_or(self.string.clone(), |start| {
            start + span.start..start + span.end
        })
    }
}

struct Reader<'a> {
    place: Place<'a>,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn parse(&mut self) -> Vec<Rule> {
        let text = self.place.text;
        let all: Vec<Token> = tokens(text)
            .into_iter()
            .filter(|token| token.kind != Kind::Comment)
            .collect();
        let pieces: Vec<&[Token]> = all
            .split_inclusive(|token| token.kind == Kind::Mark && token.of(text) == ";")
            .collect();
        if pieces.is_empty() {
            self.error(0..0, "there are no rules: nothing would be granted")
                .help = Some("begin with `permit (principal, action, resource);`".to_owned());
        }
        if pieces.len() > MOST_RULES {
            self.error(0..0, format!("there are more than {MOST_RULES} rules"));
            return Vec::new();
        }
        let mut rules: Vec<Rule> = Vec::new();
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (index, piece) in pieces.into_iter().enumerate() {
            let Some(rule) = self.rule(index, piece) else {
                continue;
            };
            if let Some(line) = names.insert(rule.name.clone(), rule.line) {
                let span = self.span_of(piece);
                self.error(span, format!("another rule is called `{}`", rule.name))
                    .help = Some(format!("it begins on line {line}"));
            }
            rules.push(rule);
        }
        rules
    }

    fn rule(&mut self, index: usize, piece: &[Token]) -> Option<Rule> {
        let text = self.place.text;
        let span = self.span_of(piece);
        if piece.len() > MOST_TOKENS || depth(text, piece) > DEEPEST {
            self.error(span, "this rule is too long or too deeply nested")
                .help = Some("write several rules instead of one".to_owned());
            return None;
        }
        let before = self.problems.len();
        let src = &text[span.clone()];
        let policy = match Policy::parse(Some(PolicyId::new(index.to_string())), src) {
            Ok(policy) => policy,
            Err(errors) => {
                let ended = piece.last().is_some_and(|last| last.of(text) == ";");
                for error in errors.iter() {
                    let at = label(error).map_or(span.clone(), |at| moved(at, span.start));
                    let message = error.to_string();
                    let help = match ended {
                        true => error.help().map(|help| help.to_string()),
                        false => Some("each rule ends with `;`".to_owned()),
                    };
                    let help = advice::on(&text[at.clone()], &message, help);
                    self.error(at, message).help = help;
                }
                return None;
            }
        };
        self.refuse_arithmetic(piece);
        self.check_words(piece);
        if let Some(id) = policy.annotation("id") {
            let long = id.chars().count() > 64;
            if id.trim().is_empty() || long || id.chars().any(|c| c.is_control() || is_invisible(c))
            {
                self.error(
                    span.clone(),
                    format!("`{}` is not a name for a rule", id.escape_debug()),
                )
                .help = Some(
                    "up to 64 visible characters in one line: `@id(\"quiet-network\")`".to_owned(),
                );
            }
        }
        if self.problems.len() > before {
            return None;
        }
        let effects = ["permit", "forbid"];
        let annotates = |at: usize| at > 0 && piece[at - 1].of(text) == "@";
        let at = (0..piece.len())
            .find(|at| effects.contains(&piece[*at].of(text)) && !annotates(*at))?;
        let (rule, head) = (&piece[at..], &piece[at]);
        let body = conditions(text, rule);
        let words = |kind| {
            body.iter()
                .filter(move |token| token.kind == kind)
                .map(|token| token.of(text))
        };
        let file_span = self.place.in_file(&span);
        Some(Rule {
            name: policy
                .annotation("id")
                .map_or(format!("rule {}", index + 1), str::to_owned),
            permits: policy.effect() == Effect::Permit,
            line: position(self.place.source, self.place.in_file(&head.span).start).0,
            span: file_span,
            text: one_line(text, rule),
            blind: !words(Kind::Word)
                .any(|word| ["principal", "action", "resource"].contains(&word)),
            plain: plain::is_plain(text, body),
            mentions: schema::CONTEXT
                .into_iter()
                .filter(|name| words(Kind::Word).any(|word| word == *name))
                .collect(),
            numbers: words(Kind::Number)
                .filter_map(|number| number.parse().ok())
                .collect(),
            words: words(Kind::Text)
                .map(|word| word.trim_matches('"').to_owned())
                .collect(),
            thresholds: self.thresholds(body),
            gaps: self.gaps(body),
            policy,
        })
    }

    /// The numbers that stand next to a comparison with `context.risk`.
    fn thresholds(&self, body: &[Token]) -> Vec<(i64, Range<usize>)> {
        let text = self.place.text;
        let is = |at: usize, word: &str| body.get(at).is_some_and(|token| token.of(text) == word);
        let compares = |at: usize| ["==", "<", "<=", ">", ">="].iter().any(|mark| is(at, mark));
        let mut found = Vec::new();
        for at in 0..body.len() {
            if !(is(at, "context") && is(at + 2, "risk")) {
                continue;
            }
            let after = compares(at + 3).then(|| body.get(at + 4)).flatten();
            let before = (at >= 2 && compares(at - 1))
                .then(|| body.get(at - 2))
                .flatten();
            for token in after.into_iter().chain(before) {
                if let Ok(number) = token.of(text).parse() {
                    found.push((number, self.place.in_file(&token.span)));
                }
            }
        }
        found
    }

    /// The words in `context.gaps.contains(…)` and its like.
    fn gaps(&self, body: &[Token]) -> Vec<(String, Range<usize>)> {
        let text = self.place.text;
        let is = |at: usize, word: &str| body.get(at).is_some_and(|token| token.of(text) == word);
        let asked = |at: &usize| is(*at, "context") && is(at + 2, "gaps") && is(at + 5, "(");
        let within = (0..body.len()).filter(asked).flat_map(|at| {
            let rest = body[at + 6..].iter();
            rest.take_while(|token| token.of(text) != ")")
        });
        within
            .filter(|token| token.kind == Kind::Text)
            .map(|token| {
                let word = token.of(text).trim_matches('"').to_owned();
                (word, self.place.in_file(&token.span))
            })
            .collect()
    }

    /// Refuses `+`, `-` and `*`: their overflow is an error at evaluation that no schema can
    /// exclude.
    fn refuse_arithmetic(&mut self, piece: &[Token]) {
        let text = self.place.text;
        for (at, token) in piece.iter().enumerate() {
            if token.kind != Kind::Mark || !["+", "-", "*"].contains(&token.of(text)) {
                continue;
            }
            // A minus that belongs to a number: it follows no operand, and digits follow it.
            let operand_before = at.checked_sub(1).is_some_and(|before| {
                let before = &piece[before];
                let mark = before.of(text);
                before.kind != Kind::Mark || mark == ")" || mark == "]" || mark == "}"
            });
            let number_after = piece
                .get(at + 1)
                .is_some_and(|after| after.kind == Kind::Number);
            if token.of(text) == "-" && !operand_before && number_after {
                continue;
            }
            self.error(
                token.span.clone(),
                "arithmetic can overflow, and is not allowed in rules",
            )
            .help = Some("compare with a number that is written out".to_owned());
        }
    }

    /// Refuses words that `tcb` and `tier` never have: such a rule would silently never hold.
    fn check_words(&mut self, piece: &[Token]) {
        let text = self.place.text;
        let is = |at: usize, word: &str| piece.get(at).is_some_and(|token| token.of(text) == word);
        let compares = |at: usize| is(at, "==") || is(at, "!=");
        for at in 0..piece.len() {
            if !is(at, "context") {
                continue;
            }
            if is(at + 1, "[") {
                self.error(
                    piece[at].span.clone(),
                    "attributes are written with a dot in rules",
                )
                .help = Some("`context.risk`".to_owned());
                continue;
            }
            let known: Vec<&str> = match piece.get(at + 2).map(|token| token.of(text)) {
                Some("tcb") => Tcb::ALL.iter().map(|tcb| tcb.as_str()).collect(),
                Some("tier") => Tier::ALL.iter().map(|tier| tier.as_str()).collect(),
                _ => continue,
            };
            let mut compared = Vec::new();
            if compares(at + 3) {
                compared.extend(piece.get(at + 4));
            }
            if at >= 2 && compares(at - 1) {
                compared.extend(piece.get(at - 2));
            }
            // `["a", "b"].contains(context.tcb)`
            if at >= 4 && is(at - 1, "(") && is(at - 2, "contains") && is(at - 4, "]") {
                let list = piece[..at - 4]
                    .iter()
                    .rev()
                    .take_while(|token| token.of(text) != "[");
                compared.extend(list);
            }
            for token in compared
                .into_iter()
                .filter(|token| token.kind == Kind::Text)
            {
                let word = token.of(text).trim_matches('"');
                if !known.contains(&word) {
                    let help = match nearest(word, known.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("it is one of `{}`", known.join("`, `")),
                    };
                    let message =
                        format!("`{}` never has the value `{word}`", piece[at + 2].of(text));
                    self.error(token.span.clone(), message).help = Some(help);
                }
            }
        }
    }

    /// Runs Cedar's validator in strict mode; its errors are ours, its warnings are returned.
    fn validate(&mut self, rules: &[Rule], schema: &Schema) -> Vec<Diagnostic> {
        let set = match PolicySet::from_policies(rules.iter().map(|rule| rule.policy.clone())) {
            Ok(set) => set,
            Err(error) => {
                self.error(0..0, error.to_string());
                return Vec::new();
            }
        };
        let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        let mut errors: Vec<Diagnostic> = result
            .validation_errors()
            .filter_map(|error| self.finding(rules, Severity::Error, error.policy_id(), error))
            .collect();
        let mut warnings: Vec<Diagnostic> = result
            .validation_warnings()
            .filter_map(|warning| {
                self.finding(rules, Severity::Warning, warning.policy_id(), warning)
            })
            .collect();
        // The validator looks at each rule once per action, in no fixed order.
        for list in [&mut errors, &mut warnings] {
            list.sort_by(|a, b| {
                (a.span.start, a.span.end, &a.message).cmp(&(b.span.start, b.span.end, &b.message))
            });
            list.dedup_by(|a, b| a.span == b.span);
        }
        self.problems.append(&mut errors);
        warnings
    }

    /// Refuses entities that the tables do not have: a `forbid` about one would silently never
    /// hold.
    fn refuse_strangers(&mut self, rule: &Rule, entities: &BTreeSet<(String, String)>) {
        for literal in rule.policy.entity_literals() {
            let kind = literal.type_name().to_string();
            let id = literal.id().unescaped().to_owned();
            let entity = (kind, id);
            if entity.0 == "Action" || entities.contains(&entity) {
                continue;
            }
            let (kind, id) = entity;
            let written = self.place.source.get(rule.span.clone()).unwrap_or_default();
            let span = match written.find(&format!("{kind}::\"{id}\"")) {
                Some(at) => moved(at..at + kind.len() + id.len() + 4, rule.span.start),
                None => rule.span.clone(),
            };
            let known = entities
                .iter()
                .filter(|(other, _)| *other == kind)
                .map(|(_, id)| id.as_str());
            let help = match nearest(&id, known) {
                Some(near) => format!("did you mean `{kind}::\"{near}\"`?"),
                None if kind == "Path" => {
                    "to decide about it apart, give it an entry of its own in `[files]`".to_owned()
                }
                None => "a rule can name what a table lists, and nothing else".to_owned(),
            };
            let message = format!("no table has `{kind}::\"{}\"`", id.escape_debug());
            self.problems.push(
                Diagnostic::new(Severity::Error, self.place.source, span, message).with_help(help),
            );
        }
    }

    fn finding(
        &self,
        rules: &[Rule],
        severity: Severity,
        id: &PolicyId,
        finding: &dyn miette::Diagnostic,
    ) -> Option<Diagnostic> {
        let rule = rules.iter().find(|rule| rule.policy.id() == id)?;
        let span = match (label(finding), self.place.start) {
            (Some(at), Some(_)) => moved(at, rule.span.start),
            _ => rule.span.clone(),
        };
        let message = finding.to_string();
        let message = message
            .strip_prefix(&format!("for policy `{id}`, "))
            .unwrap_or(&message);
        let diagnostic = Diagnostic::new(severity, self.place.source, span.clone(), message);
        let written = self.place.source.get(span).unwrap_or_default();
        Some(
            match advice::on(
                written,
                message,
                finding.help().map(|help| help.to_string()),
            ) {
                Some(help) => diagnostic.with_help(help),
                None => diagnostic,
            },
        )
    }

    fn span_of(&self, piece: &[Token]) -> Range<usize> {
        let start = piece.first().map_or(0, |token| token.span.start);
        start..piece.last().map_or(start, |token| token.span.end)
    }

    /// Notes a problem at bytes of the rules' text.
    fn error(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        let span = self.place.in_file(&span);
        let at = self.problems.len();
        self.problems.push(Diagnostic::new(
            Severity::Error,
            self.place.source,
            span,
            message,
        ));
        &mut self.problems[at]
    }
}

fn label(diagnostic: &dyn miette::Diagnostic) -> Option<Range<usize>> {
    let label = diagnostic.labels()?.next()?;
    Some(label.offset()..label.offset() + label.len())
}

fn moved(span: Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

/// How deep the recursion of a parser of this rule can get.
fn depth(text: &str, piece: &[Token]) -> usize {
    let (mut open, mut deepest, mut prefixes) = (0_usize, 0, 0_usize);
    for token in piece {
        match token.of(text) {
            "(" | "[" | "{" => open += 1,
            ")" | "]" | "}" => open = open.saturating_sub(1),
            "!" | "-" | "if" | "else" => prefixes += 1,
            "when" | "unless" | "&&" | "||" => prefixes = 0,
            _ => {}
        }
        deepest = deepest.max(open + prefixes);
    }
    deepest
}

/// The tokens after the head: those of `when` and `unless`.
fn conditions<'t>(text: &str, piece: &'t [Token]) -> &'t [Token] {
    let start = piece
        .iter()
        .position(|token| token.kind == Kind::Word && ["when", "unless"].contains(&token.of(text)))
        .unwrap_or(piece.len());
    &piece[start..]
}

/// The rule with single spaces where there was white space or a comment.
fn one_line(text: &str, piece: &[Token]) -> String {
    let mut line = String::new();
    let mut end = None;
    for token in piece {
        if end.is_some_and(|end| end != token.span.start) {
            line.push(' ');
        }
        // Line breaks may stand in strings.
        line.extend(
            token
                .of(text)
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c }),
        );
        end = Some(token.span.end);
    }
    line
}
