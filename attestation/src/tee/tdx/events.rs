//! What the RTMRs of a believed quote were extended with.

use ring::digest::{SHA384, digest};

use crate::appraisal::TdxClaims;
use crate::eventlog::{BOOT_APPLICATION, EventLog, EventLogError, Registers};
use crate::evidence::Evidence;
use crate::reference::TdxReferenceValues;
use crate::tee::checklist::{List, REFERENCE};

const TCG: &str = "TCG PC Client Platform Firmware Profile";
const ID: &str = "tdx.event-log";
const BOOT: &str = "tdx.boot-applications";

/// Adds the checks. A log has to explain every register: one that something else extended as well
/// is explained only with the application's log.
pub(crate) fn check_events(
    list: &mut List,
    claims: &TdxClaims,
    evidence: &Evidence,
    reference: &TdxReferenceValues,
) -> Result<(), EventLogError> {
    let has_applications = evidence.application_log().next().is_some();
    let firmware = evidence.event_log().map(EventLog::parse).transpose()?;
    if firmware.is_none() && !has_applications {
        list.skipped(ID, "none came along", TCG);
        match reference.boot_applications {
            Some(_) => list.unknown(BOOT, "no event log", "an event log", REFERENCE),
            None => list.skipped(BOOT, "not compared", REFERENCE),
        }
        return Ok(());
    }
    let mut registers = firmware
        .as_ref()
        .map_or_else(Registers::default, EventLog::replay);
    let mut applications = 0_usize;
    for (index, event) in evidence.application_log().enumerate() {
        if event.rtmr > 3 {
            return Err(EventLogError::Register {
                event: index,
                register: u32::from(event.rtmr),
            });
        }
        let is_of_its_data = || digest(&SHA384, event.data.as_bytes()).as_ref() == event.digest.0;
        if !event.data.is_empty() && !is_of_its_data() {
            return Err(EventLogError::Data(index));
        }
        registers.extend(usize::from(event.rtmr), &event.digest);
        applications = applications.saturating_add(1);
    }
    let unexplained: Vec<String> = registers
        .explain(&claims.rtmrs)
        .iter()
        .enumerate()
        .filter(|(_, explained)| !**explained)
        .map(|(rtmr, _)| format!("RTMR{rtmr}"))
        .collect();
    let explains = unexplained.is_empty();
    let events = firmware.as_ref().map_or(0, |log| log.events().len());
    let observed = if explains {
        format!("{events} events of firmware and {applications} of applications replay")
    } else {
        format!("does not replay to {}", unexplained.join(", "))
    };
    list.contraindicated(ID, explains, observed, "logs that replay to the RTMRs", TCG);

    let Some(allowed) = &reference.boot_applications else {
        list.skipped(BOOT, "not compared", REFERENCE);
        return Ok(());
    };
    let first = firmware
        .iter()
        .flat_map(EventLog::events)
        .filter(|event| event.kind == BOOT_APPLICATION)
        .map(|event| event.digest)
        .find(|digest| !allowed.contains(digest));
    let observed = match first {
        Some(digest) => format!("{digest} was started"),
        None if !explains => "the log does not replay".to_owned(),
        None => "all of them welcome".to_owned(),
    };
    let required = format!("only {} programs", allowed.len());
    list.contraindicated(
        BOOT,
        first.is_none() && explains,
        observed,
        &required,
        REFERENCE,
    );
    Ok(())
}
