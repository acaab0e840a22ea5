//! The broker as guests and their hosts meet it: the real program, TLS, and evidence of a simulated TEE.

#![allow(clippy::unwrap_used)]

mod play;

use std::io::{Read, Write};
use std::net::TcpStream;

use attestation::{ReleaseKey, SealedSecret, release_context};
use play::{Asked, Guest, Play, SECRET, tee};
use serde_json::{Value, json};

#[test]
fn a_guest_with_an_ec_key_gets_the_secret_as_a_jwe() {
    let play = Play::start("");
    let guest = Guest::with_ec();
    let client = play.client();
    let asked = client.auth();
    let told = client.attest(&asked, &guest.attestation(&asked));
    assert_eq!(told.0, 200, "{told:?}");
    // A JWS of three parts, whose claims say when it ends: what clients read of it.
    let token: Vec<_> = told.1["token"].as_str().unwrap().split('.').collect();
    let claims: Value = serde_json::from_slice(&play::decoded(&json!(token[1]))).unwrap();
    assert!(token.len() == 3 && claims["exp"].is_u64(), "{claims}");
    let (status, jwe) = client.resource(&asked, "default/key/open");
    assert_eq!(status, 200, "{jwe}");
    assert_eq!(guest.open(&jwe), SECRET);
    // The session goes on for as long as it lasts.
    assert_eq!(client.resource(&asked, "default/key/open").0, 200);
}

#[test]
fn a_guest_with_an_rsa_key_gets_the_secret_as_a_jwe() {
    let play = Play::start("");
    let guest = Guest::with_rsa();
    let client = play.client();
    let asked = client.auth();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    let (status, jwe) = client.resource(&asked, "default/key/open");
    assert_eq!(status, 200, "{jwe}");
    assert_eq!(guest.open(&jwe), SECRET);
}

#[test]
fn a_sandbox_gets_the_secret_of_its_policy_sealed_to_its_release_key() {
    let play = Play::start("");
    let key = ReleaseKey::generate().unwrap();
    let client = play.client();
    let asked = client.auth();
    let (challenge, attestation) = play::casemate(&asked, &key, play::POLICY, &mut tee());
    assert_eq!(client.attest(&asked, &attestation).0, 200);
    let (status, sealed) = client.resource(&asked, "default/key/limited");
    assert_eq!(status, 200, "{sealed}");
    let sealed: SealedSecret = serde_json::from_value(sealed).unwrap();
    let context = release_context("default/key/limited", &challenge.report_data());
    assert_eq!(&key.open(&sealed, &context).unwrap()[..], SECRET);
    // As another resource it does not open: whoever answers cannot swap two secrets.
    let other = release_context("default/key/open", &challenge.report_data());
    assert!(key.open(&sealed, &other).is_err());

    // Another policy is another matter.
    let asked = client.auth();
    let (_, attestation) = play::casemate(&asked, &key, [9; 32], &mut tee());
    assert_eq!(client.attest(&asked, &attestation).0, 200);
    assert_eq!(client.resource(&asked, "default/key/limited").0, 403);
}

#[test]
fn what_is_not_for_a_guest_and_what_is_not_there_are_one_answer() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    // Bound to no policy, so the secret of a policy is not for it.
    let limited = client.resource(&asked, "default/key/limited");
    assert_eq!(limited.0, 403);
    for other in [
        "default/key/missing",
        "x/y/z",
        "default/key/limited%00",
        "..%2f../key/open",
    ] {
        assert_eq!(client.resource(&asked, other), limited, "{other}");
    }
}

#[test]
fn nobody_gets_anything_without_having_attested_in_that_session() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let stranger = Asked {
        session: "x".repeat(43),
        nonce: asked.nonce.clone(),
    };
    for who in [&asked, &stranger] {
        let (status, told) = client.resource(who, "default/key/open");
        assert_eq!((status, &told["type"]), (401, &json!("casemate:session")));
    }
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&stranger, &guest.attestation(&asked)).0, 401);
    // Evidence that is not believed makes no session of it either.
    let forged = guest.attestation_by(&asked, &mut tee().tamper());
    assert_eq!(client.attest(&asked, &forged).0, 401);
    assert_eq!(client.resource(&asked, "default/key/open").0, 401);
}

#[test]
fn a_nonce_is_good_for_one_attestation() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let (guest, thief) = (Guest::with_ec(), Guest::with_ec());
    let attestation = guest.attestation(&asked);
    assert_eq!(client.attest(&asked, &attestation).0, 200);
    // The same once more; and another key, with evidence of its own, in the attested session.
    for again in [&attestation, &thief.attestation(&asked)] {
        let (status, told) = client.attest(&asked, again);
        assert_eq!(
            (status, &told["type"]),
            (401, &json!("casemate:nonce-unknown"))
        );
    }
    // What the session gives is still for the first key.
    let (_, jwe) = client.resource(&asked, "default/key/open");
    assert_eq!(guest.open(&jwe), SECRET);
    // In another session it is the nonce of another.
    let other = client.auth();
    let (status, told) = client.attest(&other, &attestation);
    assert_eq!((status, &told["type"]), (400, &json!("casemate:form")));
}

#[test]
fn a_nonce_is_spent_by_a_refusal_too() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(
        client
            .attest(&asked, &guest.attestation_by(&asked, &mut tee().tamper()))
            .0,
        401
    );
    let (status, told) = client.attest(&asked, &guest.attestation(&asked));
    assert_eq!(
        (status, &told["type"]),
        (401, &json!("casemate:nonce-unknown"))
    );
}

#[test]
fn of_many_who_attest_on_one_nonce_at_once_one_is_appraised() {
    let play = Play::start("");
    let asked = play.client().auth();
    let attestation = Guest::with_ec().attestation(&asked);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| play.client().attest(&asked, &attestation).0))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1,
        "{statuses:?}"
    );
}

#[test]
fn a_nonce_is_good_once_also_when_the_broker_was_killed_in_between() {
    let mut play = Play::start("");
    let (client, guest) = (play.client(), Guest::with_ec());
    let (spent, unspent) = (client.auth(), client.auth());
    let attestation = guest.attestation(&spent);
    assert_eq!(client.attest(&spent, &attestation).0, 200);
    play.kill();
    play.begin_again();
    let client = play.client();
    let (status, told) = client.attest(&spent, &attestation);
    assert_eq!(
        (status, &told["type"]),
        (401, &json!("casemate:nonce-unknown"))
    );
    // What it had promised it keeps: the session goes on, and so does the nonce that nobody has used.
    assert_eq!(client.resource(&spent, "default/key/open").0, 200);
    assert_eq!(client.attest(&unspent, &guest.attestation(&unspent)).0, 200);
}

#[test]
fn a_token_opens_nothing_here() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    let (_, told) = client.attest(&asked, &guest.attestation(&asked));
    let token = told["token"].as_str().unwrap();
    let other = client.auth();
    // Without a session, in another one with a key of its own, and forged: the header alone without a
    // signature.
    let forged = format!(
        "{}.{}.",
        "eyJhbGciOiJub25lIn0",
        token.split('.').nth(1).unwrap()
    );
    for token in [token, &forged] {
        for session in [None, Some(&other)] {
            let (status, told) = client.with_token(token, session, "default/key/open");
            assert_eq!(
                (status, &told["type"]),
                (401, &json!("casemate:session")),
                "{token}"
            );
        }
    }
}

#[test]
fn who_relays_an_exchange_over_a_connection_of_its_own_cannot_open_what_comes_back() {
    let play = Play::start("");
    let (relay, guest, thief) = (play.client(), Guest::with_ec(), Guest::with_ec());
    // The guest believes to speak with the broker, and answers the nonce that the relay was given.
    let asked = relay.auth();
    let attestation = guest.attestation(&asked);
    assert_eq!(relay.attest(&asked, &attestation).0, 200);
    let (status, jwe) = relay.resource(&asked, "default/key/open");
    assert_eq!((status, guest.open(&jwe)), (200, SECRET.to_vec()));
    let stolen = std::panic::AssertUnwindSafe(|| thief.open(&jwe));
    assert!(std::panic::catch_unwind(stolen).is_err());
    // A second connection to the broker is nobody, whoever attested over the first one.
    let stranger = Asked {
        session: "y".repeat(43),
        nonce: asked.nonce.clone(),
    };
    assert_eq!(play.client().resource(&stranger, "default/key/open").0, 401);
}

#[test]
fn evidence_for_one_connection_is_refused_over_another() {
    let mut play = Play::start("");
    let binding = refused(&json!("casemate:binding"));
    let key = ReleaseKey::generate().unwrap();
    // The guest has a connection with who relays, and that one has another with the broker.
    let (guests, mut relays) = (play.tls(), play.tls());
    let mine = play::channel(&guests);
    let theirs = attestation::Hex(play::channel(&relays)).to_string();
    for (what, change) in [
        ("as it was sent", None),
        ("with the name of the other connection", Some(json!(theirs))),
        ("without a name", Some(Value::Null)),
    ] {
        let asked = play::auth_over(&mut relays);
        let ec = Guest::with_ec().attestation_over(&asked, &guests);
        let asked_again = play::auth_over(&mut relays);
        let (_, hpke) =
            play::casemate_over(&asked_again, &key, play::POLICY, &mut tee(), Some(mine));
        for (asked, mut attestation) in [(asked, ec), (asked_again, hpke)] {
            let data = attestation["runtime-data"].as_object_mut().unwrap();
            match &change {
                Some(Value::Null) => drop(data.remove("tls-exporter")),
                Some(other) => drop(data.insert("tls-exporter".to_owned(), other.clone())),
                None => {}
            }
            let attest = "POST /kbs/v0/attest";
            play::send(
                &mut relays,
                attest,
                &asked.session,
                &attestation.to_string(),
            );
            let (status, _, told) = play::receive(&mut relays);
            assert_eq!((status, told), binding, "{what}");
        }
    }
    // Nor over a connection other than that of the nonce, though it is the guest's own.
    let (mut first, mut second) = (play.tls(), play.tls());
    let asked = play::auth_over(&mut first);
    let attestation = Guest::with_ec()
        .attestation_over(&asked, &second)
        .to_string();
    play::send(
        &mut second,
        "POST /kbs/v0/attest",
        &asked.session,
        &attestation,
    );
    let (status, _, told) = play::receive(&mut second);
    assert_eq!((status, told), binding);
    let records = play.end();
    assert!(records.iter().all(|record| record["kind"] != "attested"));
}

#[test]
fn whoever_attests_for_one_connection_is_served_over_that_one_alone() {
    let mut play = Play::start("");
    let (mut own, mut other) = (play.tls(), play.tls());
    let guest = Guest::with_ec();
    let asked = play::auth_over(&mut own);
    let attestation = guest.attestation_over(&asked, &own).to_string();
    play::send(
        &mut own,
        "POST /kbs/v0/attest",
        &asked.session,
        &attestation,
    );
    assert_eq!(play::receive(&mut own).0, 200);
    let line = "GET /kbs/v0/resource/default/key/near";
    for (stream, expected) in [(&mut other, 403), (&mut own, 200)] {
        play::send(stream, line, &asked.session, "");
        let (status, _, told) = play::receive(stream);
        assert_eq!(status, expected, "{told}");
        if status == 200 {
            assert_eq!(guest.open(&told), SECRET);
        }
    }
    // What is for those alone who are bound to their connection is for nobody else.
    let client = play.client();
    let asked = client.auth();
    let unbound = Guest::with_ec();
    assert_eq!(client.attest(&asked, &unbound.attestation(&asked)).0, 200);
    assert_eq!(client.resource(&asked, "default/key/open").0, 200);
    assert_eq!(client.resource(&asked, "default/key/near").0, 403);
    drop((own, other, client));
    let records = play.end();
    let refused = records.iter().filter(|record| record["kind"] == "refused");
    assert!(refused.clone().count() == 2 && refused.clone().all(|it| it["code"] == "channel"));
}

#[test]
fn what_was_counted_is_told_to_whoever_watches_over_the_broker() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    client.attest(&asked, &guest.attestation(&asked));
    client.resource(&asked, "default/key/open");
    client.resource(&asked, "default/key/limited");
    let (status, text) = client.text("metrics").unwrap();
    assert_eq!(status, 200);
    for line in [
        "# TYPE casemate_broker_released_total counter",
        "casemate_broker_challenged_total 1",
        "casemate_broker_attested_total 1",
        "casemate_broker_released_total 1",
        "casemate_broker_refused_total 1",
        "casemate_broker_unavailable_total 0",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
}

#[test]
fn whoever_waits_for_news_is_answered_when_the_broker_ends() {
    let mut play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    let told = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.lease(&asked, "default/key/open", 600));
        // Its look is counted before it waits.
        let looked = "casemate_broker_leased_total 1";
        let other = play.client();
        while !other.text("metrics").unwrap().1.contains(looked) {
            std::thread::yield_now();
        }
        play.restart();
        waiting.join().unwrap()
    });
    assert_eq!(told, (200, json!({ "seconds": 60 })));
}

#[test]
fn a_changed_folder_of_endorsements_reaches_whoever_waits() {
    let play = Play::with_endorsements();
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    let told = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.lease(&asked, "default/key/open", 600));
        let looked = "casemate_broker_leased_total 1";
        let other = play.client();
        while !other.text("metrics").unwrap().1.contains(looked) {
            std::thread::yield_now();
        }
        // The intermediate has signed its last.
        let now = attestation::UnixTime::from(std::time::SystemTime::now());
        let crl = attestation::simulated_crl(now, None, true).unwrap();
        std::fs::write(play.path("new.crl"), crl).unwrap();
        std::fs::rename(play.path("new.crl"), play.path("endorsements/new.crl")).unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(told, (200, json!({ "ended": "attest" })));
    let asked = client.auth();
    let (status, told) = client.attest(&asked, &guest.attestation(&asked));
    assert_eq!((status, &told["type"]), (401, &json!("casemate:revoked")));
}

#[test]
fn clients_that_are_large_or_many_do_not_make_the_broker_grow() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let huge = vec![b'['; 64 << 20];
    // Once, so that what is needed for one of each is there.
    let _ = client.post("attest", Some(&asked), &huge);
    let before = play.memory();
    let held: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = play.tls();
            let _ = stream.write_all(b"POST /kbs/v0/attest HTTP/1.1\r\ncontent-length: 900000\r\n");
            stream
        })
        .collect();
    for _ in 0..8 {
        let _ = client.post("attest", Some(&asked), &huge);
        let _ = client.post("auth", None, &huge[..1 << 20]);
    }
    // Half a GiB was sent, and a hundred wait: the bound is some of one request for each of them.
    let grown = play.memory().saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB more than {before}");
    drop(held);
    assert!(play.client().is_healthy());
}

#[test]
fn a_guest_that_waits_for_news_costs_little_memory_and_hears_of_them() {
    const MANY: usize = 400;
    // Ten thousand of them are to fit into 200 MiB.
    const EACH: u64 = (200 << 20) / 10_000;
    let play = Play::start("[limits]\nconnections = 1000\npatience = 60\nlease = 3600\n");
    // Once, so that what is needed for one of each is there.
    drop(play.waiting(20));
    let before = play.memory();
    let mut held = play.waiting(MANY);
    let each = play.memory().saturating_sub(before) * 1024 / MANY as u64;
    // What is built for tests may be larger than what is shipped, by a third; the bench has the figure.
    assert!(each < EACH + EACH / 3, "{each} bytes for each");
    play.admin(&["revoke", "default/key/open", "--why", "it leaked"])
        .unwrap();
    for stream in &mut held {
        assert_eq!(play::receive(stream).2, json!({ "ended": "revoked" }));
    }
}

#[test]
fn evidence_must_be_bound_to_this_nonce_and_this_key() {
    let play = Play::start("");
    let client = play.client();
    let (guest, thief) = (Guest::with_ec(), Guest::with_ec());

    // Genuine evidence, with the thief's key beside it.
    let asked = client.auth();
    let mut stolen = guest.attestation(&asked);
    stolen["runtime-data"]["tee-pubkey"] =
        thief.attestation(&asked)["runtime-data"]["tee-pubkey"].clone();
    let binding = json!("casemate:binding");
    assert_eq!(client.attest(&asked, &stolen), refused(&binding));

    // Evidence that answered an earlier nonce, under the new one.
    let (old, new) = (client.auth(), client.auth());
    let mut replayed = guest.attestation(&old);
    replayed["runtime-data"]["nonce"] = json!(new.nonce);
    assert_eq!(client.attest(&new, &replayed), refused(&binding));

    // A release key, policy or log that the evidence does not name.
    for field in ["policy-digest", "log-key"] {
        let asked = client.auth();
        let key = ReleaseKey::generate().unwrap();
        let (_, mut other) = play::casemate(&asked, &key, play::POLICY, &mut tee());
        other["runtime-data"][field] = json!("77".repeat(32));
        assert_eq!(client.attest(&asked, &other), refused(&binding), "{field}");
    }

    // Evidence in one protocol's binding does not do in the other's.
    let asked = client.auth();
    let key = ReleaseKey::generate().unwrap();
    let (_, casemate) = play::casemate(&asked, &key, play::POLICY, &mut tee());
    let mut mixed = guest.attestation(&asked);
    mixed["tee-evidence"] = casemate["tee-evidence"].clone();
    assert_eq!(client.attest(&asked, &mixed), refused(&binding));
}

fn refused(code: &Value) -> (u16, Value) {
    (
        401,
        json!({ "type": code, "detail": "the evidence is not believed" }),
    )
}

#[test]
fn a_believed_guest_that_is_not_good_enough_gets_no_key() {
    let play = Play::start("");
    let client = play.client();
    for (what, mut tee) in [
        ("debug", tee().debug()),
        ("another measurement", tee().unknown()),
    ] {
        let asked = client.auth();
        let guest = Guest::with_ec();
        let told = client.attest(&asked, &guest.attestation_by(&asked, &mut tee));
        assert_eq!(told.0, 200, "{what}: {told:?}");
        assert_eq!(client.resource(&asked, "default/key/open").0, 403, "{what}");
    }
}

#[test]
fn evidence_of_a_device_that_nothing_commits_to_is_refused() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let mut attestation = Guest::with_ec().attestation(&asked);
    attestation["tee-evidence"]["additional_evidence"] = json!("{\"nvidia\":{}}");
    assert_eq!(client.attest(&asked, &attestation).0, 400);
}

#[test]
fn simulated_evidence_is_not_believed_unless_the_operator_says_so() {
    let play = Play::strict();
    let client = play.client();
    let asked = client.auth();
    let told = client.attest(&asked, &Guest::with_ec().attestation(&asked));
    assert_eq!(told, refused(&json!("casemate:unknown-root")));
}

#[test]
fn requests_are_bounded_in_size_and_depth() {
    let play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let huge = vec![b' '; 64 << 20];
    // The answer comes before all of it is sent: refused, or closed.
    let told = client.post("attest", Some(&asked), &huge);
    assert!(matches!(told, Err(()) | Ok((413, _))), "{told:?}");
    assert!(matches!(
        client.post("auth", None, &huge[..1 << 20]),
        Err(()) | Ok((413, _))
    ));
    let deep = "[".repeat(100_000);
    for body in [
        deep.as_bytes(),
        b"",
        b"{",
        b"\xff",
        b"null",
        b"{\"version\":1,\"tee\":{}}",
    ] {
        assert_eq!(
            play.client()
                .post("auth", None, &body[..body.len().min(10_000)])
                .unwrap()
                .0,
            400
        );
        // Each over a connection of its own: those of before were closed over their bodies.
        let client = play.client();
        assert_eq!(client.post("attest", Some(&asked), body).unwrap().0, 400);
    }
    // None of it was an attempt: the nonce is still good.
    assert_eq!(
        client
            .attest(&asked, &Guest::with_ec().attestation(&asked))
            .0,
        200
    );
}

#[test]
fn a_header_without_end_is_not_read() {
    let play = Play::start("");
    let mut stream = play.tls();
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\n");
    let line = [b"x-more: ".as_slice(), &[b'a'; 1000], b"\r\n"].concat();
    let mut sent = 0;
    while sent < 1_000_000 && stream.write_all(&line).is_ok() {
        sent += line.len();
    }
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    assert!(!String::from_utf8_lossy(&told).contains("200 OK"));
    assert!(play.client().is_healthy());
}

#[test]
fn clients_that_are_slow_are_given_up_whatever_they_are_slow_at() {
    let play = Play::start("[limits]\npatience = 5\n");
    // At the handshake, at the header, at the body. Each is closed by the broker: reading comes to an end.
    let mut silent = TcpStream::connect(play.address()).unwrap();
    let mut header = play.tls();
    header.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    let mut body = play.tls();
    let asked = play.client().auth();
    let half = format!(
        "POST /kbs/v0/attest HTTP/1.1\r\nhost: x\r\ncookie: kbs-session-id={}\r\ncontent-length: 1000\r\n\r\n{{",
        asked.session
    );
    body.write_all(half.as_bytes()).unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    let _ = header.read_to_end(&mut rest);
    let _ = body.read_to_end(&mut rest);
    assert!(play.client().is_healthy());
}

#[test]
fn more_than_is_taken_at_once_is_refused_at_once() {
    let play = Play::start("[limits]\nappraisals = 1\npatience = 60\n");
    let client = play.client();
    let (first, second) = (client.auth(), client.auth());
    let half = format!(
        "POST /kbs/v0/attest HTTP/1.1\r\nhost: x\r\ncookie: kbs-session-id={}\r\ncontent-length: 1000\r\n\r\n{{",
        first.session
    );
    let deadline = std::time::Instant::now() + play::DEADLINE;
    let mut slow = Vec::new();
    loop {
        // One who says that there is a body to come, and lets wait; another one, if the first came while
        // the question below was answered.
        let mut stream = play.tls();
        stream.write_all(half.as_bytes()).unwrap();
        slow.push(stream);
        // An empty body is no attempt on the nonce.
        let (status, told) = client.post("attest", Some(&second), b"{}").unwrap();
        if (status, &told["type"]) == (429, &json!("casemate:busy")) {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "never busy: {status} {told}"
        );
    }
}

#[test]
fn an_address_that_asks_too_often_is_told_to_wait() {
    let play = Play::start("[limits]\nasks-per-minute = 3\n");
    let client = play.client();
    let body = br#"{"version":"0.1.1","tee":"snp","extra-params":""}"#;
    // Two minutes may be touched: seven are more than both take.
    let busy = (0..7)
        .filter(|_| client.post("auth", None, body).unwrap().0 == 429)
        .count();
    assert!((1..=4).contains(&busy), "{busy}");
}

#[test]
fn what_the_operator_revokes_is_released_to_nobody_also_after_a_restart() {
    let mut play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    assert_eq!(client.resource(&asked, "default/key/open").0, 200);
    let told = play
        .admin(&["revoke", "default/key/open", "--why", "it leaked"])
        .unwrap();
    assert_eq!(told["revoked"], "default/key/open");
    assert_eq!(client.resource(&asked, "default/key/open").0, 403);
    assert!(
        play.admin(&["revoke", "default/key/missing", "--why", "x"])
            .is_err()
    );

    play.restart();
    let list = play.admin(&["list"]).unwrap();
    let open = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "default/key/open");
    assert_eq!(open.unwrap()["revoked"], true);
    let (client, guest) = (play.client(), Guest::with_ec());
    let asked = client.auth();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    assert_eq!(client.resource(&asked, "default/key/open").0, 403);
    play.admin(&["restore", "default/key/open", "--why", "it did not"])
        .unwrap();
    assert_eq!(client.resource(&asked, "default/key/open").0, 200);
}

#[test]
fn every_release_is_recorded_before_it_and_the_log_verifies_at_the_end() {
    let mut play = Play::start("");
    let client = play.client();
    let asked = client.auth();
    let guest = Guest::with_ec();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    client.resource(&asked, "default/key/open");
    client.resource(&asked, "default/key/limited");
    let forged = client.auth();
    client.attest(&forged, &guest.attestation_by(&forged, &mut tee().tamper()));
    let records = play.end();
    let told: Vec<_> = records
        .iter()
        .map(|record| record["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "serving",
            "attested",
            "releasing",
            "refused",
            "not-attested",
            "closed"
        ]
    );
    assert_eq!(records[3]["code"], "policy");
    assert_eq!(records[1]["session"], records[2]["session"]);
    // Whoever reads the log cannot go on with somebody's session, and learns no secret.
    let text = serde_json::to_string(&records).unwrap();
    assert!(
        !text.contains(&asked.session) && !text.contains("the secret"),
        "{text}"
    );
}
