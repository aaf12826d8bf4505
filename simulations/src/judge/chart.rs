//! The figures as a picture: an SVG that stands for itself, on light and on dark pages.
//!
//! Two panels, both with logarithmic axes: shares of good candidates that were rolled back
//! (whiskers: the 95 % interval), and candidate requests until bad ones were (median, and a
//! line to the 95th percentile). Shapes tell the judges apart as well as colours do.

use std::fmt::Write as _;

use super::Who;
use super::figures::{Column, Figures, Finding};

const WIDTH: f64 = 900.0;
const LABELS: f64 = 215.0;
const RIGHT: f64 = WIDTH - 40.0;
/// Height of a scenario's row, and of the lane that each judge has in it.
const ROW: f64 = 46.0;
const LANE: f64 = 9.0;
/// Height of what stands above a panel's first row, and below its last.
const ABOVE: f64 = 58.0;
const BELOW: f64 = 44.0;

/// Colours are written out for each scheme: not every program that shows an SVG knows variables.
const STYLE: &str = "\
svg{font:13px system-ui,sans-serif}text{fill:#1f2328}.ground{fill:#fff}.title{font-size:15px;font-weight:600}\
.faint{fill:#59636e;font-size:11px}.end{text-anchor:end}.middle{text-anchor:middle}\
.rule{stroke:#d1d9e0}.target{stroke:#1f2328;stroke-dasharray:4 3}.line{stroke-width:2}\
.j0{fill:#0969da;stroke:#0969da}.j1{fill:#bc4c00;stroke:#bc4c00}.j2{fill:#8250df;stroke:#8250df}.j3{fill:#57606a;stroke:#57606a}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.ground{fill:#0d1117}.faint{fill:#9198a1}.rule{stroke:#3d444d}\
.target{stroke:#f0f6fc}.j0{fill:#58a6ff;stroke:#58a6ff}.j1{fill:#ffa657;stroke:#ffa657}.j2{fill:#d2a8ff;stroke:#d2a8ff}\
.j3{fill:#9198a1;stroke:#9198a1}}";

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    /// Values with a rule, and what is written there.
    ticks: &'static [(f64, &'static str)],
}

const SHARES: Axis = Axis {
    low: 1e-4,
    high: 1.0,
    ticks: &[
        (1e-4, "0.01 %"),
        (1e-3, "0.1 %"),
        (1e-2, "1 %"),
        (1e-1, "10 %"),
        (1.0, "100 %"),
    ],
};

const SAMPLES: Axis = Axis {
    low: 5.0,
    high: 30_000.0,
    ticks: &[
        (10.0, "10"),
        (100.0, "100"),
        (1_000.0, "1,000"),
        (10_000.0, "10,000"),
    ],
};

impl Axis {
    fn x(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        LABELS + share.clamp(0.0, 1.0) * (RIGHT - LABELS)
    }
}

/// The picture.
#[must_use]
pub fn svg(figures: &Figures) -> String {
    let part = |bad| -> Vec<&Finding> {
        figures
            .scenarios
            .iter()
            .filter(|finding| finding.bad == bad)
            .collect()
    };
    let (good, bad) = (part(false), part(true));
    let mut body = String::new();
    let mut y = legend(&mut body, 34.0);
    if !good.is_empty() {
        let title = "Good candidates rolled back: share of rollouts (left end: none seen)";
        y = panel(&mut body, y, title, &SHARES, &good, false_alarms);
        let (x, top) = (SHARES.x(figures.alpha), y - BELOW - ROW * good.len() as f64);
        line(&mut body, "target", (x, top), (x, y - BELOW));
        text(&mut body, "faint", x + 4.0, top - 4.0, "Rollcall's bound");
    }
    if !bad.is_empty() {
        let title = "Bad candidates: requests of theirs until rolled back (line: to p95; cross: most not found)";
        y = panel(&mut body, y, title, &SAMPLES, &bad, detection);
    }
    let summary = "False alarms and requests to detection of Rollcall's judge, a repeated z-test, \
                   a Mann-Whitney judge and thresholds, on the same simulated rollouts";
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" role=\"img\" aria-label=\"{summary}\">\n\
         <style>{STYLE}</style>\n<rect width=\"{WIDTH}\" height=\"{y}\" class=\"ground\"/>\n{body}</svg>\n"
    )
}

fn legend(body: &mut String, y: f64) -> f64 {
    let mut x = 40.0;
    for (nth, who) in Who::ALL.into_iter().enumerate() {
        let words = match who {
            Who::Rollcall => "Rollcall",
            Who::ZTest => "z-test at 1 %, every interval",
            Who::MannWhitney => "Mann-Whitney (as Kayenta)",
            Who::Thresholds => "thresholds",
        };
        mark(body, nth, x, y - 4.0);
        text(body, "", x + 12.0, y, words);
        x += 40.0 + 7.0 * words.len() as f64;
    }
    y + 8.0
}

/// One panel from `y` on; where it ends.
fn panel(
    body: &mut String,
    y: f64,
    title: &str,
    axis: &Axis,
    findings: &[&Finding],
    draw: fn(&mut String, &Axis, usize, &Column, f64),
) -> f64 {
    text(body, "title", 40.0, y + 26.0, title);
    let top = y + ABOVE;
    let bottom = top + ROW * findings.len() as f64;
    for (value, label) in axis.ticks {
        let x = axis.x(*value);
        line(body, "rule", (x, top), (x, bottom));
        text(body, "faint middle", x, bottom + 16.0, label);
    }
    for (row, finding) in findings.iter().enumerate() {
        let y = top + ROW * row as f64;
        line(body, "rule", (40.0, y), (RIGHT, y));
        text(body, "end", LABELS - 14.0, y + 27.0, finding.scenario);
        let _ = write!(body, "<g><title>{}</title>", finding.about);
        for (nth, column) in finding.judges.iter().enumerate() {
            draw(body, axis, nth, column, y + 10.0 + LANE * nth as f64);
        }
        body.push_str("</g>\n");
    }
    line(body, "rule", (40.0, bottom), (RIGHT, bottom));
    bottom + BELOW
}

fn false_alarms(body: &mut String, axis: &Axis, judge: usize, column: &Column, y: f64) {
    let share = column.false_alarms;
    let class = format!("line j{judge}");
    line(
        body,
        &class,
        (axis.x(share.low), y),
        (axis.x(share.high), y),
    );
    mark(body, judge, axis.x(share.share()), y);
}

fn detection(body: &mut String, axis: &Axis, judge: usize, column: &Column, y: f64) {
    let Some(median) = column.median else {
        let (left, up) = (RIGHT - 4.0, y - 4.0);
        line(
            body,
            &format!("line j{judge}"),
            (left, up),
            (left + 8.0, up + 8.0),
        );
        line(
            body,
            &format!("line j{judge}"),
            (left, up + 8.0),
            (left + 8.0, up),
        );
        return;
    };
    let x = axis.x(median as f64);
    let end = column.p95.map_or(RIGHT, |p95| axis.x(p95 as f64));
    line(body, &format!("line j{judge}"), (x, y), (end, y));
    mark(body, judge, x, y);
}

/// A circle, a square, a diamond or a triangle.
fn mark(body: &mut String, judge: usize, x: f64, y: f64) {
    let shape = match judge {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\""),
        1 => format!("<path d=\"M{x:.1} {y:.1}m-4-4h8v8h-8z\""),
        2 => format!("<path d=\"M{x:.1} {y:.1}m0-5l5 5-5 5-5-5z\""),
        _ => format!("<path d=\"M{x:.1} {y:.1}m0-5l5 9h-10z\""),
    };
    let _ = writeln!(body, "{shape} class=\"j{judge}\"/>");
}

fn line(body: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        body,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(body: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(
        body,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::super::Ending;
    use super::super::scenario::SCENARIOS;
    use super::*;

    #[test]
    fn every_scenario_and_judge_is_in_the_picture_and_nothing_lies_outside() {
        let found = Ending {
            failed: Some(50_000),
            ..Ending::default()
        };
        let runs = [[found, Ending::default(), found, found]; 3];
        let figures = Figures {
            seed: 1,
            alpha: 0.001,
            scenarios: SCENARIOS
                .iter()
                .map(|scenario| Finding::of(scenario, 0.001, &runs))
                .collect(),
        };
        let svg = svg(&figures);
        for scenario in SCENARIOS {
            assert!(svg.contains(&format!(">{}<", scenario.name)));
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        for x in svg.split(" x=\"").skip(1) {
            let x: f64 = x.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..WIDTH).contains(&x), "{x}");
        }
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }
}
