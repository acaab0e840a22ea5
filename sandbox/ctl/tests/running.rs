//! Sandboxes that run, as their operators see them: real processes, started, asked, ordered and killed
//! through the command line.

#![allow(clippy::unwrap_used)]

mod play;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use play::{Play, is};
use serde_json::{Value, json};

/// Goes on until its stdin is closed.
const WAITS: &str = "echo up > /out/up; read -r forever; exit 3";

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[test]
fn status_tells_how_a_sandbox_is_and_orders_tighten_it_and_are_lifted() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    let id = running.id();
    let status = || {
        let all: Value = serde_json::from_str(&play.does(&["status", "--json"])).unwrap();
        all[0]["status"].clone()
    };
    let before = status();
    assert_eq!(
        (&before["plan"]["run"], &before["risk"]),
        (&json!("running"), &json!(0))
    );
    assert_eq!(before["plan"]["files"], json!({ "/out": "write" }));
    assert!(before["evidence"]["simulated"] == true && before["init"].is_i64());

    play.does(&["adjust", &id, "--freeze", "--why", "look at it"]);
    assert_eq!(status()["plan"]["run"], "frozen");
    let text = play.does(&["status", &id]);
    assert!(
        text.contains("frozen") && text.contains("look at it"),
        "{text}"
    );
    play.does(&["adjust", &id, "--thaw", "--why", "it is fine"]);
    assert_eq!(status()["plan"]["run"], "running");

    play.does(&["adjust", &id, "--risk", "+30", "--why", "odd traffic"]);
    assert_eq!(
        (
            status()["risk"].as_u64(),
            status()["parts"]["operator"].as_u64()
        ),
        (Some(30), Some(30))
    );
    play.does(&["adjust", &id, "--withdraw", "/out", "--why", "odd results"]);
    assert_eq!(status()["plan"]["files"], json!({}));
    play.does(&["adjust", &id, "--stop", "--why", "enough"]);
    let told = running.finish();
    assert_eq!(told.code, Some(128 + 9), "{told:#?}");
    assert!(play.does(&["status"]).contains("no sandbox runs"));

    // Each order, with who gave it and why, was recorded before what it led to.
    let ordered = told.at("the order", |record| {
        is(record, "ordered") && record["order"] == "freeze"
    });
    let record = &told.records[ordered];
    assert_eq!(
        (&record["by"]["uid"], &record["why"]),
        (&json!(own_uid()), &json!("look at it"))
    );
    let freeze = |kind: &'static str| {
        move |record: &Value| is(record, kind) && record["change"] == json!({ "freeze": true })
    };
    let announced = told.at("the announcement", freeze("adjusting"));
    assert!(ordered < announced && announced < told.at("the effect", freeze("adjusted")));
    assert!(
        told.records[announced]["because"][0]
            .as_str()
            .unwrap()
            .contains("look at it")
    );
    let closed = told.at("the end", |record| is(record, "closed"));
    assert_eq!(told.records[closed]["why"], "an operator stopped it");
}

#[test]
fn a_log_becomes_a_timeline_of_text_and_a_page_that_needs_nothing_else() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    play.does(&[
        "adjust",
        &running.id(),
        "--freeze",
        "--why",
        "<b>look</b> & see",
    ]);
    play.does(&["adjust", &running.id(), "--stop", "--why", "enough"]);
    running.finish();
    let text = play.does(&["audit", "timeline", "log"]);
    for part in [
        "log verified",
        "ordered by uid",
        "freeze the workload: in force after",
        "an operator stopped it",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    play.does(&["audit", "timeline", "log", "--html", "page.html"]);
    let page = fs::read_to_string(play.path("page.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("&lt;b&gt;look&lt;/b&gt; &amp; see") && !page.contains("<b>look"));
    for outside in [
        "http://", "https://", "<script", "<link", "<img", "@import", "url(h",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn what_cannot_be_followed_is_refused_and_changes_nothing() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    let id = running.id();
    for (arguments, said) in [
        (
            &["adjust", &id, "--withdraw", "/nowhere", "--why", "x"][..],
            "no endpoint `/nowhere`",
        ),
        (&["adjust", &id, "--freeze", "--why", " "][..], "reason"),
        (
            &["adjust", "nobody", "--freeze", "--why", "x"][..],
            "no sandbox `nobody`",
        ),
        (&["adjust", &id, "--freeze"][..], "--why"),
        (&["adjust", &id, "--why", "x"][..], "required"),
        (
            &["adjust", &id, "--freeze", "--stop", "--why", "x"][..],
            "cannot be used with",
        ),
        (&["adjust", &id, "--risk", "101", "--why", "x"][..], "+100"),
    ] {
        let output = play.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(said),
            "{arguments:?}: {error}"
        );
    }
    let told = running.finish();
    assert_eq!(told.code, Some(3), "it went on to its own end");
    assert!(!told.records.iter().any(|record| is(record, "ordered")));
}

#[test]
fn who_sends_the_supervisor_a_unix_signal_is_recorded() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(&format!("trap 'exit 7' USR1; {WAITS}"));
    running.wait_for("the start", |record| is(record, "started"));
    play.wait_for_file("out/up");
    running.signal(rustix::process::Signal::USR1);
    let told = running.wait_until_over();
    assert_eq!(told.code, Some(7), "{told:#?}");
    let kill = &told.records[told.at("the signal", |record| is(record, "kill"))];
    assert_eq!(
        (&kill["signal"], &kill["by"]["uid"]),
        (&json!(10), &json!(own_uid()))
    );
}

#[test]
fn the_socket_of_a_dead_supervisor_is_recognised_and_removed() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    assert_eq!(play.sockets().len(), 1);
    running.kill();
    assert_eq!(play.sockets().len(), 1, "nobody was left to remove it");
    assert!(play.does(&["status"]).contains("no sandbox runs"));
    assert_eq!(play.sockets().len(), 0);
}

#[test]
fn sockets_are_not_put_where_others_could_reach_them() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let folder = play.path("run/casemate/sessions");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let told = play.start("exit 4").finish();
    assert_eq!(told.code, Some(4), "it runs without");
    assert!(
        told.lines
            .iter()
            .any(|line| line.contains("warning") && line.contains("open to others")),
        "{told:#?}"
    );
    assert!(!play.run(&["status"]).status.success());
}

#[test]
fn garbage_on_the_socket_is_answered_and_harms_nothing() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    let socket = play.sockets().remove(0);
    let get = |path: &str| format!("GET /casemate/v0/{path} HTTP/1.0\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /casemate/v0/{path} HTTP/1.0\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
    };
    for (asked, status) in [
        ("\0\r\n\r\n".to_owned(), "400"),
        ("{\"status\":{}}\r\n\r\n".to_owned(), "400"),
        (get("elsewhere"), "404"),
        (get("sessions/other"), "404"),
        (get("sessions/other/audit"), "409"),
        (post("sessions", "{\"policy\":\"x\"}"), "409"),
        (post("sessions", "{"), "400"),
        (post("sessions/other/signals", "{\"signal\":9}"), "404"),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(asked.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains(&format!(" {status} ")), "{asked}: {answer}");
    }
    assert_eq!(running.finish().code, Some(3));
}

#[test]
fn time_outside_of_the_hours_raises_the_risk() {
    let hour = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        / 3600
        % 24;
    // Well away from now, whenever that is.
    let (from, to) = ((hour + 10) % 24, (hour + 11) % 24);
    let risk = format!("time-window = {{ adds = 35, outside = \"{from:02}:00-{to:02}:00\" }}");
    let Some(play) = Play::new(&risk, "") else {
        return;
    };
    let told = play.start("exit 0").finish();
    let signal = &told.records[told.at("the signal", |record| record["sensor"] == "time-window")];
    assert_eq!(
        (&signal["sensor"], &signal["risk"], &signal["holds"]),
        (&json!("time-window"), &json!(35), &json!(true))
    );
}

#[test]
fn a_tool_outside_raises_the_risk_until_the_rules_stop_the_workload() {
    let risk = "external = { adds = 60, half-life = \"1h\", socket = \"reports.sock\", token = \"reports.token\" }";
    let rule =
        "forbid (principal, action == Action::\"live\", resource) when { context.risk >= 80 };";
    let Some(play) = Play::new(risk, rule) else {
        return;
    };
    let token = "a token of some length";
    fs::write(play.path("reports.token"), token).unwrap();
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    let stream = UnixStream::connect(play.path("reports.sock")).unwrap();
    let say = |value: Value| {
        (&stream)
            .write_all(format!("{value}\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("accepted"), "{answer}");
    };
    let report = |id: u32| {
        let event = json!({ "current_level": "HIGH", "risk_reason": "shell in a container" });
        let kind = "https://schemas.openid.net/secevent/caep/event-type/risk-level-change";
        json!({ "iss": "falco", "iat": 1, "jti": id.to_string(), "events": { kind: event } })
    };
    say(json!({ "token": token }));
    say(report(1));
    // Told twice it counts once.
    say(report(1));
    running.wait_for("the report", |record| {
        is(record, "signal") && record["sensor"] == "external"
    });
    let _ = (&stream).write_all(format!("{}\n", report(2)).as_bytes());
    let told = running.wait_until_over();
    assert_eq!(told.code, Some(122), "{told:#?}");
    let signals: Vec<_> = told
        .records
        .iter()
        .filter(|record| record["sensor"] == "external")
        .collect();
    assert_eq!(signals.len(), 2);
    assert_eq!(
        signals[0]["detail"],
        "falco: risk-level-change HIGH shell in a container"
    );
    assert!(!play.path("reports.sock").exists());
}

#[test]
fn a_program_that_was_not_executed_before_is_noticed_or_the_gap_is_told() {
    let risk = "new-exec = { adds = 20, half-life = \"1h\", known = [\"/usr/bin/id\"] }";
    let Some(play) = Play::new(risk, "") else {
        return;
    };
    let mut running = play
        .start("id -u > /dev/null; ls / > /dev/null; ls / > /dev/null; read -r forever; exit 0");
    running.wait_for("the start", |record| is(record, "started"));
    let prepared = running.wait_for("what is in force", |record| is(record, "prepared"));
    let items = prepared["enforcement"].as_array().unwrap();
    let gap = items.iter().find(|item| {
        item["id"] == "sensor" && item["detail"].as_str().unwrap().starts_with("new-exec")
    });
    if let Some(gap) = gap {
        assert_ne!(own_uid(), 0, "{gap}");
        println!("skipped: {}", gap["detail"]);
        running.finish();
        return;
    }
    running.wait_for("the new program", |record| {
        is(record, "signal") && record["sensor"] == "new-exec"
    });
    let told = running.finish();
    let seen: Vec<_> = told
        .records
        .iter()
        .filter(|record| record["sensor"] == "new-exec")
        .collect();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert!(seen[0]["detail"].as_str().unwrap().ends_with("/ls"));
}

#[test]
fn forks_that_the_limit_refuses_are_pressure() {
    let Some(play) = Play::new("resource-pressure = { adds = 20, half-life = \"1h\" }", "") else {
        return;
    };
    let mut running = play.start(
        // A shell that cannot fork ends.
        "(for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done) 2>/dev/null; read -r forever; exit 0",
    );
    let prepared = running.wait_for("what is in force", |record| is(record, "prepared"));
    let items = prepared["enforcement"].as_array().unwrap();
    if items
        .iter()
        .any(|item| item["detail"].as_str().unwrap().contains("refused forks"))
    {
        println!("skipped: this host does not count refused forks");
        running.finish();
        return;
    }
    let signal = running.wait_for("the pressure", |record| {
        is(record, "signal") && record["sensor"] == "resource-pressure"
    });
    assert!(
        signal["detail"].as_str().unwrap().contains("forks refused"),
        "{signal}"
    );
    running.finish();
}

#[test]
fn a_revocation_that_comes_while_it_runs_is_noticed_and_takes_the_trust() {
    let rule = "forbid (principal, action == Action::\"proceed\", resource) when { context.tier == \"none\" };";
    let Some(play) = Play::new("worse-evidence = { adds = 45 }", rule) else {
        return;
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let list = |revoked| {
        let at = |seconds| attestation::UnixTime(seconds);
        attestation::simulated_crl(at(now - 60), Some(at(now + 86_400)), revoked).unwrap()
    };
    fs::write(play.path("endorsements/a.crl"), list(false)).unwrap();
    let mut running = play.start(WAITS);
    running.wait_for("the start", |record| is(record, "started"));
    fs::write(play.path("endorsements/new"), list(true)).unwrap();
    fs::rename(
        play.path("endorsements/new"),
        play.path("endorsements/a.crl"),
    )
    .unwrap();
    let signal = running.wait_for("the revocation", |record| {
        is(record, "signal") && record["sensor"] == "worse-evidence"
    });
    assert_eq!(
        (&signal["risk"], &signal["holds"]),
        (&json!(45), &json!(true))
    );
    running.wait_for("the freeze", |record| {
        is(record, "adjusted") && record["change"] == json!({ "freeze": true })
    });
    // Taken back, the trust comes back with it.
    fs::write(play.path("endorsements/new"), list(false)).unwrap();
    fs::rename(
        play.path("endorsements/new"),
        play.path("endorsements/a.crl"),
    )
    .unwrap();
    running.wait_for("the thaw", |record| {
        is(record, "adjusted") && record["change"] == json!({ "freeze": false })
    });
    assert_eq!(running.finish().code, Some(3));
}
