//! Times by the size of the cluster, on logarithmic axes, as SVG.

use std::fmt::Write as _;

use super::report::{Figure, Unit, cases};

/// The field, and the room beside it for numbers and names.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 30.0;
const NAMES: f64 = 240.0;
/// Decades of the axes: workloads, and microseconds.
const SIZES: (i32, i32) = (3, 5);
const TIMES: (i32, i32) = (0, 7);
const COLOURS: [&str; 8] = ["#1b6ca8", "#c8553d", "#3a7d44", "#8e44ad", "#b7791f", "#0f766e", "#be185d", "#475569"];

fn along(value: f64, (first, last): (i32, i32)) -> f64 {
    (value.max(f64::MIN_POSITIVE).log10() - f64::from(first)) / f64::from(last - first)
}

fn x(workloads: f64) -> f64 {
    LEFT + WIDTH * along(workloads, SIZES)
}

fn y(micros: f64) -> f64 {
    TOP + HEIGHT * (1.0 - along(micros, TIMES).clamp(0.0, 1.0))
}

/// Name of a power of ten.
fn decade(power: i32) -> String {
    match power {
        0..3 => format!("{} us", 10_i32.pow(power.cast_unsigned())),
        3..6 => format!("{} ms", 10_i32.pow((power - 3).cast_unsigned())),
        _ => format!("{} s", 10_i32.pow((power - 6).cast_unsigned())),
    }
}

pub(crate) fn svg(figures: &[Figure]) -> String {
    let (width, height) = (LEFT + WIDTH + NAMES, TOP + HEIGHT + 50.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    grid(&mut text);
    let times: Vec<_> = figures.iter().filter(|figure| figure.unit == Unit::Micros).collect();
    let names = cases(figures).into_iter().filter(|case| times.iter().any(|figure| figure.case == *case));
    for (at, case) in names.enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        // Colours repeat; then lines are broken.
        let dash =
            if at < COLOURS.len() { "none".to_owned() } else { format!("{0} {0}", 2 * (at / COLOURS.len()) + 1) };
        let of_case: Vec<_> = times.iter().filter(|figure| figure.case == case).collect();
        let points: Vec<_> = of_case
            .iter()
            .map(|figure| format!("{:.1},{:.1}", x(figure.workloads.into()), y(figure.median())))
            .collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"{dash}\"/>",
            points.join(" ")
        );
        let (line, beside) = (TOP + 14.0 * at as f64 + 8.0, LEFT + WIDTH + 15.0);
        let _ = writeln!(
            text,
            "<line x1=\"{beside}\" y1=\"{line}\" x2=\"{}\" y2=\"{line}\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"{dash}\"/><text x=\"{}\" y=\"{}\">{case}</text>",
            beside + 25.0,
            beside + 32.0,
            line + 4.0
        );
    }
    text + "</svg>\n"
}

fn grid(text: &mut String) {
    for power in TIMES.0..=TIMES.1 {
        let at = y(10_f64.powi(power));
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            at + 4.0,
            decade(power)
        );
    }
    for size in [1_000.0, 10_000.0, 50_000.0] {
        let at = x(size);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{0}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{1}\" text-anchor=\"middle\">{size}</text>",
            TOP + HEIGHT,
            TOP + HEIGHT + 16.0
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">workloads</text>",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 36.0
    );
}
