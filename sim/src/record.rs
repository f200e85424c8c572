//! A record of runs that grows: what a run found is added to what the runs before it found.
//!
//! A run of many hours need not be one: each part says which seeds it played, how long, and of which version of the
//! sources, and the sums are those of all parts.

use serde_json::{Map, Value, json};

/// What one run adds.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Of which version, in its runner's words.
    pub label: &'a str,
    /// The first seed of each plan.
    pub from: u64,
    /// The seed after the highest.
    pub to: u64,
    /// Time on processors, of all threads, s.
    pub cpu_s: f64,
}

/// The seed after all that a record has played: of a run that was cut off, the few that were under way are left out.
pub fn next_seed(record: &Value) -> u64 {
    let parts = record["parts"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["to"].as_u64()).max().unwrap_or(0)
}

/// Whether a record, if there is one, goes on with these plans: seeds are counted for all of them together. A plan that was
/// added since begins at the seed that the others have come to.
pub fn goes_on(record: &Value, plans: &[&str]) -> bool {
    record["plans"].as_object().is_none_or(|table| table.keys().all(|plan| plans.contains(&plan.as_str())))
}

/// A record and a run's report as one record.
pub fn joined(record: &Value, report: &Value, part: Part<'_>) -> Value {
    let mut sums = Map::new();
    for name in ["plans", "seeds", "steps", "world_s", "took_s", "counts"] {
        sums.insert(name.into(), sum(&record[name], &report[name]));
    }
    let failed = [record, report].into_iter().filter_map(|it| it["failed"].as_array()).flatten().cloned();
    sums.insert("failed".into(), failed.collect());
    let Part { label, from, to, cpu_s } = part;
    let own = json!({
        "label": label,
        "from": from,
        "to": to,
        "seeds": report["seeds"],
        "steps": report["steps"],
        "failed": report["failed"].as_array().map_or(0, Vec::len),
        "took_s": report["took_s"],
        "core_hours": cpu_s / 3_600.0,
    });
    let before = record["parts"].as_array().into_iter().flatten().cloned();
    let parts: Vec<Value> = before.chain([own]).collect();
    let hours = parts.iter().filter_map(|part| part["core_hours"].as_f64()).sum::<f64>();
    sums.insert("parts".into(), parts.into());
    sums.insert("core_hours".into(), hours.into());
    Value::Object(sums)
}

/// Numbers are added, and tables of numbers entry by entry.
fn sum(a: &Value, b: &Value) -> Value {
    match (a, b) {
        (Value::Null, one) | (one, Value::Null) => one.clone(),
        (Value::Object(a), Value::Object(b)) => {
            let mut both = a.clone();
            for (name, value) in b {
                let of_a = both.entry(name.clone()).or_insert(Value::Null);
                *of_a = sum(of_a, value);
            }
            both.into()
        }
        (a, b) => match (a.as_u64(), b.as_u64()) {
            (Some(a), Some(b)) => (a + b).into(),
            _ => (a.as_f64().unwrap_or(0.0) + b.as_f64().unwrap_or(0.0)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        let report = |seeds: u64, failed: Value| {
            json!({
                "plans": { "calm": { "seeds": seeds, "steps": 10 }, (format!("of {seeds}")): { "seeds": 1 } },
                "seeds": seeds, "steps": 10, "steps_per_s": 3, "world_s": 7, "took_s": 1.5,
                "counts": { "sent": 4 }, "failed": failed,
            })
        };
        assert_eq!(next_seed(&Value::Null), 0);
        let part = Part { label: "one", from: 0, to: 50, cpu_s: 3_600.0 };
        let first = joined(&Value::Null, &report(100, json!([])), part);
        assert_eq!(next_seed(&first), 50);
        assert!(goes_on(&first, &["later", "calm", "of 100"]) && !goes_on(&first, &["calm"]));
        let part = Part { label: "two", from: 50, to: 60, cpu_s: 1_800.0 };
        let both = joined(&first, &report(20, json!([{ "seed": 55 }])), part);
        assert_eq!(next_seed(&both), 60);
        assert_eq!(both["plans"]["calm"], json!({ "seeds": 120, "steps": 20 }));
        assert_eq!(both["plans"]["of 20"], json!({ "seeds": 1 }));
        assert_eq!(
            (&both["seeds"], &both["took_s"], &both["core_hours"]),
            (&json!(120), &json!(3.0), &json!(1.5))
        );
        assert_eq!(both["failed"], json!([{ "seed": 55 }]));
        assert_eq!(both["parts"][1]["label"], "two");
        assert_eq!((&both["parts"][0]["failed"], &both["parts"][1]["failed"]), (&json!(0), &json!(1)));
    }
}
