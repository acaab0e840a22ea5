#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;

#[test]
fn every_area_is_looked_at_and_every_gap_has_a_fix() {
    let findings = Doctor::probe();
    println!("{}", Table(&findings));

    let ids: BTreeSet<_> = findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids.len(), findings.len(), "an id is used twice");
    let areas: BTreeSet<_> = findings
        .iter()
        .map(|finding| finding.area.to_string())
        .collect();
    assert_eq!(areas.len(), 12, "{areas:?}");
    for finding in &findings {
        assert!(
            !finding.observed.is_empty() && !finding.means.is_empty(),
            "{finding}"
        );
        let needs_fix = matches!(finding.status, Status::Missing | Status::Partly);
        assert_eq!(finding.fix.is_some(), needs_fix, "{finding}");
    }
    let kernel = findings
        .iter()
        .find(|finding| finding.id == "kernel-version")
        .unwrap();
    assert!(kernel.observed.starts_with("Linux "));
}

#[test]
fn probing_leaves_no_child_behind() {
    let children = || {
        let own = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        own.filter_map(|task| read(task.path().join("children")))
            .collect::<String>()
    };
    let tried = std::thread::spawn(|| Doctor::probe().len()).join().unwrap();
    assert!(tried > 20);
    // Other tests have children of their own, but no longer than a moment.
    let gone = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        children().is_empty()
    });
    assert!(gone, "{}", children());
}

#[test]
fn findings_are_json_for_programs() {
    let finding = Finding::missing("kvm", Area::Kvm, "none", "slow", "buy one");
    let json = serde_json::to_value(&finding).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "id": "kvm", "area": "kvm", "status": "missing",
            "observed": "none", "means": "slow", "fix": "buy one",
        })
    );
}
