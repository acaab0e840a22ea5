//! The description of the agent's interface is true: of its source, and of what it answers.

#![allow(clippy::unwrap_used)]

mod service;
#[path = "../../tests/common/tool.rs"]
mod tool;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use service::Service;

const OPENAPI: &str = include_str!("../../docs/agent-openapi.json");
const HTTP: &str = include_str!("../src/http.rs");
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn described() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

#[test]
fn the_description_of_the_interface_has_every_path_and_method_and_no_other() {
    let described = described();
    let mut all = BTreeSet::new();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            all.insert((path.clone(), method.clone()));
        }
    }
    let mut served = BTreeSet::new();
    for route in HTTP.split(".route(").skip(1) {
        let path = route.split('"').nth(1).unwrap();
        let handlers = route.split(".fallback(").next().unwrap();
        let methods = METHODS
            .iter()
            .filter(|it| handlers.contains(&format!("{it}(")));
        served.extend(methods.map(|method| (path.to_owned(), (*method).to_owned())));
    }
    assert_eq!(all, served);
}

/// Passes TCP connections on to a socket, for tools that know nothing else.
fn reachable(socket: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let socket = socket.to_owned();
    thread::spawn(move || {
        for outside in listener.incoming().map_while(Result::ok) {
            let Ok(inside) = UnixStream::connect(&socket) else {
                continue;
            };
            let back = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
            thread::spawn(move || copy(outside, inside));
            thread::spawn(move || copy(back.0, back.1));
        }
    });
    address
}

trait Ends: Read + io::Write {
    fn end(&self);
}

impl Ends for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Ends for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

fn copy(mut from: impl Ends, mut to: impl Ends) {
    let _ = io::copy(&mut from, &mut to);
    from.end();
    to.end();
}

#[test]
fn what_is_asked_at_random_is_answered_as_described() {
    let Some(schemathesis) = tool::tool("schemathesis") else {
        return;
    };
    let service = Service::start_with("", &["--dangerously-accept-simulated"]);
    service.proven_policy("work", "true");
    service.proven_policy("long", "while :; do sleep 1; done");
    let begin = |policy: &str| {
        let wanted = json!({ "policy": policy, "receipt": true, "detached": true });
        let (status, begun) = service.ask("POST", "sessions", &wanted);
        assert_eq!(status, 201, "{begun}");
        begun["session"]["id"].as_str().unwrap().to_owned()
    };
    let (long, ended) = (begin("long"), begin("work"));
    service::within(|| {
        let (_, told) = service.ask("GET", &format!("sessions/{ended}"), &Value::Null);
        told["sessions"][0]["ended"]["outcome"].is_object()
    });

    // The same description, with names that there are.
    let mut described = described();
    let names = |names: &[&str]| json!({ "type": "string", "enum": names });
    for (path, methods) in described["paths"].as_object_mut().unwrap() {
        for operation in methods.as_object_mut().unwrap().values_mut() {
            let parameters = operation.get_mut("parameters");
            let parameters = parameters.and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                if parameter["name"] == "session" {
                    // What is followed to its end has to have one.
                    let all: &[&str] = if path.ends_with("/events") {
                        &[&ended, "nobody-1-1-1"]
                    } else {
                        &[&long, &ended, "nobody-1-1-1"]
                    };
                    parameter["schema"] = names(all);
                }
            }
        }
    }
    described["components"]["schemas"]["Wanted"]["properties"]["policy"] =
        names(&["work", "absent"]);
    let schema = service.folder.path().join("openapi.json");
    fs::write(&schema, described.to_string()).unwrap();

    let told = Command::new(schemathesis)
        .arg("run")
        .arg(&schema)
        .args(["--url", &format!("http://{}", reachable(&service.socket()))])
        .args(["--checks", "all", "--max-examples", "25", "--seed", "1"])
        // An order of the described form can name what there is not.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--phases", "examples,coverage,fuzzing"])
        .args(["--generation-database", "none", "--no-color"])
        .args(["--request-timeout", "20"])
        .current_dir(service.folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stdout);
    let last: Vec<_> = said.lines().rev().take(250).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    assert!(
        told.status.success(),
        "{}\n{}",
        last.join("\n"),
        String::from_utf8_lossy(&told.stderr)
    );
    println!("{}", last.join("\n"));
    // It was the agent that was asked, and it still serves.
    assert_eq!(service.ask("GET", "health", &Value::Null).0, 200);
}
