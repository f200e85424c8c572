//! What is told of planted faults: a table for people, the same as markdown and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::planted::{Found, name};

/// The rules that faults break, by number.
const RULES: [&str; 22] = [
    "dense numbers per stream; a repeat gets the first answer",
    "answers are kept, and written with the append",
    "epochs grow; every write shows its fence; a cut log is told",
    "every write shows its position; an unknown outcome is found out",
    "message ids grow over takeovers",
    "durable first",
    "membership is judged in the order of the log",
    "a direct conversation is listed before its first message",
    "contiguous: seq n only after n - 1, or a gap",
    "fan-out survives its owner",
    "routes are written before the login is answered, and read after the append",
    "heads and pages are read under the fence",
    "subscriptions: last + 1, announcements, epochs, removed before the next",
    "what is not acknowledged is asked for",
    "what overflows leaves a gap",
    "the client shows once, and acknowledges what was taken",
    "cursors are merged by maximum",
    "leases count from before, and are looked at before acting",
    "a handover finishes its batch; a live owner stays",
    "a gateway without a lease takes no login; a lapsed one registers again",
    "the highest login number wins; closes are repeated; removing compares",
    "links are bound to incarnations; unanswered requests are given up",
];

/// One line for the terminal.
pub fn line(found: &Found) -> String {
    let name = name(found.fault);
    let rule = found.fault.rule();
    match &found.caught {
        Some(caught) => format!(
            "{name:<26} {rule:>4}  {:<16} {:<9} {:>5} seeds  (seed {})",
            format!("{:?}", caught.violation.invariant),
            caught.plan,
            found.seeds,
            caught.seed
        ),
        None => format!("{name:<26} {rule:>4}  NOT CAUGHT after {} seeds", found.seeds),
    }
}

/// Faults that nobody noticed.
pub fn missed(found: &[Found]) -> usize {
    found.iter().filter(|one| one.caught.is_none()).count()
}

/// Lines of the table of known seeds.
pub fn known(found: &[Found]) -> String {
    let line = |one: &Found| {
        let caught = one.caught.as_ref()?;
        Some(format!("{} {} {}\n", name(one.fault), caught.plan, caught.seed))
    };
    found.iter().filter_map(line).collect()
}

/// For machines.
pub fn json(found: &[Found]) -> Value {
    let one = |found: &Found| {
        let caught = found.caught.as_ref().map(|caught| {
            json!({
                "invariant": format!("{:?}", caught.violation.invariant),
                "plan": caught.plan,
                "seed": caught.seed,
                "at_us": caught.violation.at_us,
                "detail": caught.violation.detail,
            })
        });
        json!({
            "fault": name(found.fault),
            "rule": found.fault.rule(),
            "what": found.fault.what(),
            "seeds": found.seeds,
            "caught": caught,
        })
    };
    json!({ "faults": found.iter().map(one).collect::<Vec<Value>>(), "missed": missed(found) })
}

/// docs/results/planted-faults.md.
pub fn markdown(found: &[Found]) -> String {
    let caught = found.iter().filter(|one| one.caught.is_some()).count();
    let mut text = String::from("# Planted faults\n\n");
    let _ = write!(
        text,
        "Would the simulation notice if a rule were not kept? Each fault below breaks one rule at the one place in the \
         production code that keeps it (`protocol/src/planted.rs` names them; only builds of the simulation with the \
         feature `planted` have them). Seeds are played until an invariant breaks that holds without the fault: \
         {caught} of {} are caught.\n\n\
         Made by `cargo run --profile sim -p millrace-sim --features planted -- faults --markdown \
         docs/results/planted-faults.md`. `faults --check` plays the known seeds again.\n\n\
         | fault | what it does | rule | broken | plan | seeds | the seed |\n|---|---|---|---|---|---|---|\n",
        found.len()
    );
    for one in found {
        let (name, what, rule) = (name(one.fault), one.fault.what(), one.fault.rule());
        let rest = match &one.caught {
            Some(it) => {
                format!("{:?} | {} | {} | {}", it.violation.invariant, it.plan, one.seeds, it.seed)
            }
            None => format!("NOT CAUGHT | | {} |", one.seeds),
        };
        let _ = writeln!(text, "| {name} | {what} | {rule} | {rest} |");
    }
    text.push_str("\n## The rules\n\n");
    for (index, rule) in RULES.iter().enumerate() {
        let _ = writeln!(text, "{}. {rule}", index + 1);
    }
    text
}
