//! The report as one page without anything from elsewhere: the table, and the latency curves drawn as SVG.
//!
//! The horizontal axis is that of HdrHistogram's plots: each nine (90 %, 99 %, 99.9 %, …) takes the same room.

use std::fmt::Write;

use super::Report;
use super::table::{good_end, rows, time};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// Colours that can be told apart on white and on black.
const COLOURS: [&str; 6] = ["#3b7dd8", "#d9722e", "#2f9e62", "#b04fc0", "#c9a117", "#7d8797"];

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2024;--soft:#667079;--line:#d5dade;--paper:#fff}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#98a2ab;--line:#3a4147;--paper:#16191c}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:900px;margin:2em auto;padding:0 1em}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}\
table{border-collapse:collapse;width:100%}th{text-align:left}td,th{padding:.3em .6em;border-bottom:1px solid var(--line);vertical-align:top}\
td:first-child{color:var(--soft);white-space:pre}.bad{color:#d33c3c;font-weight:600}.good{color:#2f9e62;font-weight:600}\
svg{width:100%;height:auto}text{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--line);stroke-width:1}\
footer{color:var(--soft);font-size:.85em;margin-top:2em}\
.wide{max-width:1500px;font-size:13px}.wide svg{max-width:900px}";

/// The text of the file.
pub fn page(report: &Report) -> String {
    let faults = report.faults();
    let machine = &report.machine;
    document(&Page {
        title: &format!("millrace {}: {} connections", report.scenario, report.connections),
        is_good: faults.is_empty(),
        verdict: &match faults.is_empty() {
            true if report.interrupted => format!("interrupted: {}", good_end(report)),
            true => good_end(report).to_owned(),
            false => format!("failed: {}", faults.join(", ")),
        },
        trouble: report.first_trouble.as_deref().filter(|_| !faults.is_empty()),
        heads: &[],
        rows: &rows(report).into_iter().map(|(what, figure)| vec![what, figure]).collect::<Vec<_>>(),
        curves: &report.curves,
        footer: &format!(
            "{} s, {} B payload over {}; {machine}; clients: {} threads, {}",
            report.seconds, report.payload_bytes, report.transport, report.threads, report.client_backend,
        ),
    })
}

/// What a page shows.
pub(crate) struct Page<'a> {
    pub(crate) title: &'a str,
    pub(crate) is_good: bool,
    pub(crate) verdict: &'a str,
    pub(crate) trouble: Option<&'a str>,
    /// Heads of the table's columns; none: no line of heads.
    pub(crate) heads: &'a [&'a str],
    pub(crate) rows: &'a [Vec<String>],
    pub(crate) curves: &'a [Curve],
    pub(crate) footer: &'a str,
}

/// A line of the plot: its name, and points of (percentile, microseconds).
pub(crate) type Curve = (String, Vec<(f64, u64)>);

/// A page with one table and one plot.
pub(crate) fn document(page: &Page<'_>) -> String {
    document_with_notes(page, &[])
}

/// Tables of more columns than this take the whole width of the window.
const COLUMNS: usize = 6;

/// The same with lines below the table: (about what, in words).
pub(crate) fn document_with_notes(page: &Page<'_>, notes: &[(&str, String)]) -> String {
    let title = escape(page.title);
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body{}>\n<h1>{title}</h1>\n",
        if page.heads.len() > COLUMNS { " class=\"wide\"" } else { "" },
    );
    let class = if page.is_good { "good" } else { "bad" };
    let _ = writeln!(text, "<p class=\"{class}\">{}</p>", escape(page.verdict));
    if let Some(trouble) = page.trouble {
        let _ = writeln!(text, "<p>First trouble: {}</p>", escape(trouble));
    }
    text.push_str("<table>\n");
    if !page.heads.is_empty() {
        let cells: String = page.heads.iter().map(|head| format!("<th>{}</th>", escape(head))).collect();
        let _ = writeln!(text, "<tr>{cells}</tr>");
    }
    for row in page.rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = writeln!(text, "<tr>{cells}</tr>");
    }
    text.push_str("</table>\n");
    for (about, words) in notes {
        let _ = writeln!(text, "<p><b>{}</b>: {}</p>", escape(about), escape(words));
    }
    if page.curves.iter().any(|(_, points)| points.len() > 1) {
        text.push_str("<h2>Delivery latency by percentile, from when each message was due</h2>\n");
        text.push_str(&plot(page.curves));
    }
    let _ = writeln!(text, "<footer>{}</footer>\n</body>\n</html>", escape(page.footer));
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// How many nines a percentile has: 0 for 0 %, 1 for 90 %, 2 for 99 %.
fn nines(percentile: f64) -> f64 {
    -(1.0 - (percentile / 100.0).min(1.0 - 1e-9)).log10()
}

/// Lines from percentile to latency, both axes logarithmic (the horizontal one in nines).
fn plot(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let nines_max = points().map(|(percentile, _)| nines(*percentile)).fold(1.0, f64::max).ceil();
    let least = points().map(|(_, us)| *us).min().unwrap_or(1).max(1) as f64;
    let most = points().map(|(_, us)| *us).max().unwrap_or(10).max(10) as f64;
    let (low, high) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let x = |percentile: f64| LEFT + nines(percentile) / nines_max * (WIDTH - LEFT - RIGHT);
    let y = |us: f64| {
        let share = (us.max(1.0).log10() - low) / (high - low);
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"latency by percentile\">\n");
    for power in low as i32..=high as i32 {
        let us = 10f64.powi(power);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4}</text>",
            WIDTH - RIGHT,
            y(us),
            LEFT - 8.0,
            y(us) + 4.0,
            time(us as u64),
        );
    }
    let mut mark = |percentile: f64, label: String| {
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\"/>\
             <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{label}</text>",
            x(percentile),
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0,
        );
    };
    mark(0.0, "0%".to_owned());
    mark(50.0, "50%".to_owned());
    for count in 1..=nines_max as i32 {
        let percentile = 100.0 * (1.0 - 10f64.powi(-count));
        mark(percentile, format!("{:.*}%", (count - 2).max(0) as usize, percentile));
    }
    for (nth, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[nth % COLOURS.len()];
        // Curves beyond the colours are dashed.
        let dash = if nth < COLOURS.len() { "" } else { " stroke-dasharray=\"5 4\"" };
        let line: Vec<String> = points
            .iter()
            .map(|(percentile, us)| format!("{:.1},{:.1}", x(*percentile), y(*us as f64)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash} points=\"{}\"><title>{}</title></polyline>",
            line.join(" "),
            escape(name),
        );
        // Low and to the right: curves rise there.
        let legend_y = HEIGHT - BOTTOM - 12.0 - 18.0 * (curves.len() - 1 - nth) as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            WIDTH - RIGHT - 140.0,
            legend_y - 6.0,
            WIDTH - RIGHT - 122.0,
            legend_y,
            escape(name),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_whole_and_needs_nothing_from_elsewhere() {
        let mut report = super::super::tests::sample();
        report.lost = 1;
        report.first_trouble = Some("<script>".to_owned());
        let page = page(&report);
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("<polyline") && page.contains("prefers-color-scheme:dark"));
        assert!(page.contains("failed: 1 deliveries lost"));
        for foreign in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(foreign), "{foreign} in the page");
        }
        for tag in ["table", "svg", "tr", "td", "body", "head", "style", "text", "title"] {
            let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
            let opened =
                page.match_indices(&open).filter(|(at, _)| page[at + open.len()..].starts_with([' ', '>']));
            assert_eq!(opened.count(), page.matches(&close).count(), "<{tag}>");
        }
    }

    #[test]
    fn nines_are_evenly_spaced() {
        for (percentile, expected) in [(0.0, 0.0), (90.0, 1.0), (99.0, 2.0), (99.9, 3.0)] {
            assert!((nines(percentile) - expected).abs() < 1e-6, "{percentile}");
        }
        assert!(nines(100.0).is_finite());
    }
}
