//! A report as JSON: an object with its fields, indented.

use serde::Serialize;

/// The text of the file.
pub fn text(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report is plain data");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn has_the_fields_that_others_read() {
        let json: Value = serde_json::from_str(&super::text(&super::super::tests::sample())).unwrap();
        for field in [
            "connections",
            "logins",
            "login_failures",
            "messages_sent",
            "deliveries_expected",
            "deliveries",
            "lost",
            "duplicates",
            "out_of_order",
            "connects_per_s",
            "deliveries_per_s",
            "late_sends",
        ] {
            assert!(json[field].is_number(), "{field}");
        }
        for field in ["p50", "p99", "p999", "max"] {
            assert!(json["latency_us"][field].is_u64(), "latency_us.{field}");
        }
        for field in ["p50", "p99", "max"] {
            assert!(json["last_receiver_us"]["100"][field].is_u64(), "last_receiver_us.100.{field}");
        }
        for field in
            ["user_bytes_per_connection", "fixed_bytes", "cpu_us_per_delivery", "floor_cpu_us_per_delivery"]
        {
            assert!(json["gateway"][field].is_number(), "gateway.{field}");
        }
    }
}
