//! A timeline as one page of HTML: nothing is fetched, nothing is executed, everything from the log is
//! escaped.

use std::fmt::Write;

use serde_json::Value;

use super::lanes::Lane;
use super::{Run, kind, reasons, simulated, text, utc, words};
use guest_agent::view::clean;

const STYLE: &str = include_str!("page.css");

/// Where the picture's time begins and ends, in its own units.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 984.0;
/// Top and height of the risk's curve.
const TOP: f64 = 26.0;
const HIGH: f64 = 180.0;
/// Height of a lane, with the gap after it.
const LANE: f64 = 30.0;

/// The whole page.
pub fn page(run: &Run) -> String {
    let (name, command) = run.title();
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name}: timeline of a run</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n\
         <p class=\"kind\">Timeline of a run</p>\n<h1>{name}</h1>\n<p class=\"command\"><code>{command}</code></p>\n\
         <p>{began}, for {length}. <strong>{ending}.</strong></p>\n<p class=\"proof\">{proof}</p>\n</header>\n<main>\n",
        name = escape(&name),
        command = escape(&command),
        began = utc(run.began.unwrap_or_default()),
        length = seconds(run.length()),
        ending = escape(&sentence(&run.ending())),
        proof = escape(&sentence(&run.proof())),
    );
    page += &tiles(run);
    page += &picture(run);
    page += &layers(run);
    page += &table(run);
    page += "</main>\n</body>\n</html>\n";
    page
}

/// The figures that one looks for first.
fn tiles(run: &Run) -> String {
    let highest = run.risk.iter().map(|(_, risk)| *risk).max().unwrap_or(0);
    let latency = run.latency().map_or_else(
        || "none was needed".to_owned(),
        |(median, most)| format!("{} ms median, {} ms at most", millis(median), millis(most)),
    );
    let orders = run.count("ordered");
    let tiles = [
        ("highest risk", highest.to_string(), "of 100".to_owned()),
        (
            "signals",
            run.count("signal").to_string(),
            "recorded".into(),
        ),
        (
            "decisions",
            run.count("decided").to_string(),
            "each can be replayed from its facts".into(),
        ),
        ("adjustments", run.count("adjusted").to_string(), latency),
        ("orders", orders.to_string(), who(run)),
    ];
    let mut html = String::from("<section aria-label=\"Figures\"><dl class=\"tiles\">\n");
    for (name, value, note) in tiles {
        let _ = writeln!(
            html,
            "<div><dt>{name}</dt><dd>{value}</dd><dd class=\"note\">{}</dd></div>",
            escape(&note)
        );
    }
    html + "</dl></section>\n"
}

/// Who ordered something.
fn who(run: &Run) -> String {
    let by = |moment: &super::Moment| {
        matches!(kind(&moment.payload), "ordered" | "kill")
            .then(|| moment.payload["by"]["uid"].as_u64())
            .flatten()
    };
    let uids: std::collections::BTreeSet<u64> = run.moments.iter().filter_map(by).collect();
    match uids.len() {
        0 => "nobody interfered".to_owned(),
        _ => {
            let uids: Vec<_> = uids.iter().map(|uid| format!("uid {uid}")).collect();
            format!("asked for by {}", uids.join(", "))
        }
    }
}

/// Risk and lanes over time.
fn picture(run: &Run) -> String {
    let length = run.length().max(1e-6);
    let x = |at: f64| LEFT + (RIGHT - LEFT) * (at / length).clamp(0.0, 1.0);
    let y = |risk: u8| TOP + HIGH * (1.0 - f64::from(risk) / 100.0);
    let lanes = run.lanes.all();
    let below = TOP + HIGH + 34.0;
    let bottom = below + LANE * lanes.len() as f64;
    let mut svg = format!(
        "<section aria-labelledby=\"over-time\"><h2 id=\"over-time\">Over time</h2>\n<div class=\"picture\" tabindex=\"0\" \
         role=\"region\" aria-label=\"Picture, may be scrolled\"><svg viewBox=\"0 0 1000 {:.0}\" role=\"img\" \
         aria-labelledby=\"pic-title pic-desc\">\n<title id=\"pic-title\">Risk and grants over time</title>\n\
         <desc id=\"pic-desc\">{}</desc>\n<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><line y2=\"6\" class=\"hatch\"/></pattern></defs>\n",
        bottom + 26.0,
        escape(&described(run)),
    );
    for risk in [0u8, 20, 40, 60, 80, 100] {
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
             <text class=\"tick\" x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{risk}</text>",
            y(risk),
            LEFT - 8.0,
            y(risk) + 4.0,
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"0\" y=\"{:.1}\">risk</text>",
        TOP + 4.0
    );
    for (at, label) in ticks(length) {
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{label}</text>",
            x(at),
            bottom + 18.0,
        );
    }
    svg += &curve(run, &x, &y);
    for moment in &run.moments {
        let (class, height) = match kind(&moment.payload) {
            "adjusted" => ("adjusted", bottom - TOP),
            "not-adjusted" => ("failed", bottom - TOP),
            "ordered" => ("ordered", bottom - TOP),
            "signal" => ("signal", 0.0),
            _ => continue,
        };
        let title = escape(&format!(
            "+{:.3} s: {}",
            moment.at,
            words(&moment.payload).unwrap_or_default()
        ));
        if class == "signal" {
            let risk = moment.payload["risk"].as_u64().unwrap_or(0).min(100) as u8;
            let _ = writeln!(
                svg,
                "<circle class=\"signal\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{title}</title></circle>",
                x(moment.at),
                y(risk)
            );
        } else {
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1:.1}\"><title>{title}</title></line>",
                x(moment.at),
                TOP + height,
            );
        }
    }
    for (index, lane) in lanes.iter().enumerate() {
        svg += &drawn(lane, below + LANE * index as f64, run.length(), &x);
    }
    svg += "</svg></div>\n<p class=\"legend\">";
    for (class, meaning) in [
        ("signal", "signal"),
        ("adjusted", "adjustment"),
        ("ordered", "order of a person"),
        ("full", "granted"),
        ("less", "less, or waiting"),
        ("gone", "taken, or over"),
    ] {
        let _ = write!(
            svg,
            "<span><span class=\"key {class}\"></span>{meaning}</span> "
        );
    }
    svg += "Between two records the risk is drawn as it was recorded last.</p></section>\n";
    svg
}

/// The risk as steps, with what is below it filled.
fn curve(run: &Run, x: &impl Fn(f64) -> f64, y: &impl Fn(u8) -> f64) -> String {
    let Some((first, _)) = run.risk.first() else {
        return String::new();
    };
    let mut line = String::new();
    let mut before = None;
    for (at, risk) in &run.risk {
        match before {
            None => {
                let _ = write!(line, "M{:.1} {:.1}", x(*at), y(*risk));
            }
            Some(before) => {
                let _ = write!(line, "H{:.1}", x(*at));
                if before != *risk {
                    let _ = write!(line, "V{:.1}", y(*risk));
                }
            }
        }
        before = Some(*risk);
    }
    let end = x(run.length());
    format!(
        "<path class=\"area\" d=\"{line}H{end:.1}V{0:.1}H{1:.1}Z\"/>\n<path class=\"curve\" d=\"{line}H{end:.1}\"/>\n",
        y(0),
        x(*first),
    )
}

fn drawn(lane: &Lane, top: f64, length: f64, x: &impl Fn(f64) -> f64) -> String {
    let name: String = match lane.name.chars().count() {
        0..=22 => lane.name.clone(),
        _ => lane.name.chars().take(21).chain(['…']).collect(),
    };
    let mut svg = format!(
        "<text class=\"label\" x=\"0\" y=\"{:.1}\">{}<title>{}</title></text>\n",
        top + 15.0,
        escape(&name),
        escape(&lane.name)
    );
    for span in &lane.spans {
        let to = span.to.unwrap_or(length);
        let (from, wide) = (x(span.from), (x(to) - x(span.from)).max(2.0));
        let class = span.state.class();
        let word = escape(&span.word);
        let _ = writeln!(
            svg,
            "<g><title>{word}: +{:.3} s to +{to:.3} s</title><rect class=\"{class}\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"22\" rx=\"3\"/>",
            span.from,
        );
        if class == "gone" {
            let _ = writeln!(
                svg,
                "<rect class=\"hatched\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"22\" rx=\"3\"/>"
            );
        }
        // About as wide as its letters are.
        if wide > 8.0 + 7.2 * span.word.chars().count() as f64 {
            let _ = writeln!(
                svg,
                "<text class=\"word on-{class}\" x=\"{:.1}\" y=\"{:.1}\">{word}</text>",
                from + 6.0,
                top + 15.0
            );
        }
        svg += "</g>\n";
    }
    svg
}

/// The picture in words, for who does not see it.
fn described(run: &Run) -> String {
    let highest = run.risk.iter().max_by_key(|(_, risk)| *risk);
    let risk = highest.map_or_else(
        || "No risk was recorded.".to_owned(),
        |(at, risk)| format!("The risk was highest at {at:.3} seconds, with {risk} of 100."),
    );
    let lanes = run.lanes.all().iter().map(|lane| {
        let states: Vec<_> = lane
            .spans
            .iter()
            .map(|span| format!("{} from {:.3} s", span.word, span.from))
            .collect();
        format!("{}: {}.", lane.name, states.join(", "))
    });
    format!(
        "{risk} {} The table below has all of it.",
        lanes.collect::<Vec<_>>().join(" ")
    )
}

/// What was enforced, layer by layer.
fn layers(run: &Run) -> String {
    let Some(prepared) = run.first("prepared") else {
        return String::new();
    };
    let mut html = String::from(
        "<section aria-labelledby=\"layers\"><h2 id=\"layers\">What was enforced</h2>\n<div class=\"scroll\"><table>\n\
         <thead><tr><th scope=\"col\">Layer</th><th scope=\"col\">Protection</th><th scope=\"col\">State</th><th scope=\"col\">Detail</th></tr></thead>\n<tbody>\n",
    );
    html += &attestation(run);
    let mut items: Vec<&Value> = prepared["enforcement"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    items.sort_by_key(|item| item["layer"].as_u64());
    for item in items {
        let state = match item["state"].as_str() {
            Some("full") => "full",
            Some("partly") => "partly",
            _ => "not",
        };
        let layer = match item["layer"].as_u64() {
            Some(2) => "2 isolation",
            Some(3) => "3 system calls",
            Some(4) => "4 data",
            _ => "?",
        };
        let _ = writeln!(
            html,
            "<tr><td>{layer}</td><td><code>{}</code></td><td><span class=\"state {state}\">{state}</span></td><td>{}</td></tr>",
            escape(&text(&item["id"])),
            escape(&text(&item["detail"])),
        );
    }
    html + "</tbody></table></div></section>\n"
}

/// The row of layer 1: the last evidence that was believed.
fn attestation(run: &Run) -> String {
    let mut all = run.moments.iter().map(|moment| &moment.payload);
    let Some(attested) = all.rfind(|payload| kind(payload) == "attested") else {
        return "<tr><td>1 attestation</td><td><code>evidence</code></td><td><span class=\"state not\">not</span>\
                </td><td>no evidence was believed</td></tr>\n"
            .to_owned();
    };
    let appraisal = &attested["appraisal"];
    let checks: Vec<&Value> = appraisal["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let count = |outcome: &str| {
        checks
            .iter()
            .filter(|check| check["outcome"] == outcome)
            .count()
    };
    let (passed, failed) = (count("pass"), count("fail"));
    let full = appraisal["tier"] == "affirming" && !simulated(appraisal);
    let state = if full { "full" } else { "partly" };
    let proves = if simulated(appraisal) {
        "simulated, which proves nothing; "
    } else {
        ""
    };
    let detail = format!(
        "{}: {proves}tier {}, tcb {}; {passed} checks passed, {failed} failed, {} not asked for",
        text(&attested["tee"]),
        text(&appraisal["tier"]),
        text(&appraisal["tcb-status"]),
        checks.len() - passed - failed,
    );
    format!(
        "<tr><td>1 attestation</td><td><code>evidence</code></td><td><span class=\"state {state}\">{state}</span>\
         </td><td>{}</td></tr>\n",
        escape(&detail)
    )
}

/// Every record that says something.
fn table(run: &Run) -> String {
    let mut html = String::from(
        "<section aria-labelledby=\"records\"><h2 id=\"records\">What happened, and why</h2>\n<div class=\"scroll\"><table>\n\
         <thead><tr><th scope=\"col\">Record</th><th scope=\"col\">Time</th><th scope=\"col\">Kind</th><th scope=\"col\">What, and why</th></tr></thead>\n<tbody>\n",
    );
    for moment in &run.moments {
        let Some(what) = words(&moment.payload) else {
            continue;
        };
        let reasons = reasons(&moment.payload);
        let kind = escape(&clean(kind(&moment.payload)));
        let _ = write!(
            html,
            "<tr class=\"{kind}\"><td>{}</td><td>+{:.3} s</td><td><span class=\"badge\">{kind}</span></td><td>{}",
            moment.seq,
            moment.at,
            escape(&clean(&what)),
        );
        match reasons.len() {
            0 => {}
            1..=3 => {
                for reason in &reasons {
                    let _ = write!(
                        html,
                        "<br><small>because {}</small>",
                        escape(&clean(reason))
                    );
                }
            }
            many => {
                let _ = write!(html, "<details><summary>{many} reasons</summary><ul>");
                for reason in &reasons {
                    let _ = write!(html, "<li><small>{}</small></li>", escape(&clean(reason)));
                }
                html += "</ul></details>";
            }
        }
        html += "</td></tr>\n";
    }
    html + "</tbody></table></div></section>\n"
}

/// Up to eight places of the time axis, at round numbers.
fn ticks(length: f64) -> Vec<(f64, String)> {
    let rough = length / 7.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|m| m * power)
        .find(|step| *step >= rough);
    let step = step.unwrap_or(length);
    let mut ticks = Vec::new();
    let mut at = 0.0;
    while at <= length && ticks.len() < 9 {
        ticks.push((at, seconds(at)));
        at += step;
    }
    ticks
}

/// A time as it is read best.
fn seconds(time: f64) -> String {
    match time {
        time if time < 1e-9 => "0 s".into(),
        time if time < 1.0 => format!("{} ms", trimmed(time * 1000.0)),
        time if time < 120.0 => format!("{} s", trimmed(time)),
        time => format!("{} min", trimmed(time / 60.0)),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn millis(micros: u64) -> String {
    format!("{:.2}", micros as f64 / 1000.0)
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters
        .next()
        .map(|c| c.to_uppercase().to_string())
        .unwrap_or_default();
    first + characters.as_str()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
