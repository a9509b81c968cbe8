//! Latency over time as a picture: SVG, drawn by hand because it is a few lines and some text. Pure.
//!
//! In: what was measured. Out: an SVG document. Time runs to the right, by when jobs were due; latency up, on a
//! logarithmic axis, because its tail is what matters and lies decades above its middle.

use std::fmt::Write as _;

use super::Measured;
use crate::progress::grouped;
use crate::report::{Percentiles, Window};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 52.0;

/// A line of the picture: its name, colour and figure. The colours differ in lightness too.
type Series = (&'static str, &'static str, fn(&Percentiles) -> f64);

const SERIES: [Series; 4] = [
    ("max", "#b8b8b8", |p| p.max),
    ("p99", "#c2410c", |p| p.p99),
    ("p90", "#d99a2b", |p| p.p90),
    ("p50", "#1d4e89", |p| p.p50),
];

/// Draws the answers' latency over time.
pub(super) fn svg(measured: &Measured) -> String {
    let axes = Axes::of(&measured.windows, measured.duration_s as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    svg += &text(LEFT, 26.0, "start", 17, "Latency from when a job was due to its reply");
    svg += &text(LEFT, 46.0, "start", 13, &subtitle(measured));
    svg += &axes.grid();
    for series in SERIES {
        svg += &axes.line(&measured.windows, series);
    }
    svg += &legend(&measured.latency_ms);
    svg + "</svg>\n"
}

fn subtitle(measured: &Measured) -> String {
    let errors: u64 = measured.jobs.errors.values().sum();
    format!(
        "{} jobs/s asked for, {:.1} answered; {} jobs, {} errors; {} items a job",
        measured.rate,
        measured.answered_per_s,
        grouped(measured.jobs.due),
        grouped(errors),
        measured.items_per_job
    )
}

fn text(x: f64, y: f64, anchor: &str, size: u32, words: &str) -> String {
    // The words are figures and our own, so nothing in them needs an escape.
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"#222222\">{words}</text>\n"
    )
}

/// Where seconds and milliseconds lie.
struct Axes {
    seconds: f64,
    /// Whole decades of milliseconds, as exponents of ten.
    decades: (i32, i32),
}

impl Axes {
    fn of(windows: &[Window], seconds: f64) -> Self {
        let figures = || windows.iter().flat_map(|window| [window.latency_ms.p50, window.latency_ms.max]);
        let exponent = |ms: f64| ms.max(0.001).log10();
        let least = figures().map(exponent).reduce(f64::min).unwrap_or(0.0).floor() as i32;
        let most = figures().map(exponent).reduce(f64::max).unwrap_or(0.0).ceil() as i32;
        Self { seconds: seconds.max(0.1), decades: (least, most.max(least + 1)) }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ms: f64) -> f64 {
        let (least, most) = (f64::from(self.decades.0), f64::from(self.decades.1));
        let share = (ms.max(0.001).log10().max(least) - least) / (most - least);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self) -> String {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut grid = String::new();
        let mut rule = |x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
            writeln!(grid, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\" fill=\"none\"/>")
                .expect("a string can be written to");
        };
        for decade in self.decades.0..=self.decades.1 {
            let ms = 10f64.powi(decade);
            rule(LEFT, self.y(ms), right, self.y(ms), "#d4d4d4");
            if decade < self.decades.1 {
                (2..10).for_each(|step| {
                    rule(LEFT, self.y(ms * f64::from(step)), right, self.y(ms * f64::from(step)), "#f1f1f1")
                });
            }
        }
        let ticks = self.ticks();
        ticks.iter().for_each(|tick| rule(self.x(*tick), floor, self.x(*tick), floor + 5.0, "#888888"));
        rule(LEFT, floor, right, floor, "#888888");
        for decade in self.decades.0..=self.decades.1 {
            let ms = 10f64.powi(decade);
            grid += &text(LEFT - 8.0, self.y(ms) + 4.5, "end", 13, &milliseconds(ms));
        }
        ticks.iter().for_each(|tick| grid += &text(self.x(*tick), floor + 21.0, "middle", 13, &tick.to_string()));
        grid + &text((LEFT + right) / 2.0, HEIGHT - 10.0, "middle", 13, "seconds since the load began")
    }

    /// Five to ten round numbers of seconds.
    fn ticks(&self) -> Vec<f64> {
        let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0];
        let step = step.into_iter().find(|step| self.seconds / step <= 10.0).unwrap_or(21600.0);
        let count = (self.seconds / step + 1e-9).floor() as u32;
        (0..=count).map(|n| (f64::from(n) * step * 10.0).round() / 10.0).collect()
    }

    fn line(&self, windows: &[Window], (_, colour, figure): Series) -> String {
        // A point stands in the middle of its window.
        let half = windows.windows(2).map(|pair| pair[1].from_s - pair[0].from_s).reduce(f64::min).unwrap_or(0.0) / 2.0;
        let point = |window: &Window| {
            let x = self.x((window.from_s + half).min(self.seconds));
            format!("{x:.1} {:.1}", self.y(figure(&window.latency_ms)))
        };
        let points: Vec<_> = windows.iter().map(point).collect();
        match &points[..] {
            [] => String::new(),
            [only] => {
                let (x, y) = only.split_once(' ').unwrap_or((only, "0"));
                format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>\n")
            }
            _ => format!(
                "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\" fill=\"none\"/>\n",
                points.join("L")
            ),
        }
    }
}

/// The lines' names with their figures over the whole load.
fn legend(all: &Percentiles) -> String {
    let x = WIDTH - RIGHT + 16.0;
    let mut legend = text(x, TOP + 6.0, "start", 12, "over all jobs");
    let figures = SERIES.iter().map(|(name, colour, figure)| (*name, *colour, figure(all)));
    for ((name, colour, ms), row) in figures.zip(1u8..) {
        let y = TOP + 6.0 + f64::from(row) * 24.0;
        let shown = if all.count == 0 { "-".to_owned() } else { milliseconds(ms) };
        writeln!(legend, "<path d=\"M{x:.1} {:.1}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>", y - 4.5)
            .expect("a string can be written to");
        legend += &text(x + 26.0, y, "start", 13, &format!("{name} {shown}"));
    }
    legend
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 9999.5 => format!("{} s", (ms / 100.0).round() / 10.0),
        ms if ms >= 99.95 => format!("{ms:.0} ms"),
        ms => format!("{} ms", (ms * 100.0).round() / 100.0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Jobs;
    use super::*;

    fn measured(windows: &[(f64, f64)]) -> Measured {
        let percentiles =
            |ms: f64| Percentiles { count: 9, p50: ms, p90: ms * 2.0, p99: ms * 4.0, p999: ms * 8.0, max: ms * 9.0 };
        let window = |(from_s, ms): &(f64, f64)| Window { from_s: *from_s, latency_ms: percentiles(*ms) };
        Measured {
            queue: "sqlite:///q.db".to_owned(),
            rate: 10.0,
            duration_s: 30,
            items_per_job: 1,
            text_tokens: [16, 16],
            seed: 1,
            jobs: Jobs { due: 9, published: 9, answered: 9, errors: BTreeMap::new() },
            published_per_s: 10.0,
            answered_per_s: 10.0,
            latency_ms: windows.first().map_or(Percentiles::default(), |(_, ms)| percentiles(*ms)),
            published_ms: Percentiles::default(),
            windows: windows.iter().map(window).collect(),
        }
    }

    /// The points of every drawn line and circle.
    fn points(svg: &str) -> Vec<(f64, f64)> {
        let lines = svg.lines().filter(|line| line.contains("stroke-linejoin"));
        let path = |line: &str| line.split('"').nth(1).unwrap_or_default().trim_start_matches('M').to_owned();
        let point = |point: &str| {
            let (x, y) = point.split_once(' ').expect("two coordinates");
            (x.parse().expect("a number"), y.parse().expect("a number"))
        };
        lines.flat_map(|line| path(line).split('L').map(point).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn every_point_lies_inside_the_frame_and_more_is_higher() {
        let svg = svg(&measured(&[(0.0, 0.02), (1.0, 3.0), (29.0, 5000.0)]));
        let points = points(&svg);
        assert_eq!(points.len(), 3 * SERIES.len());
        for (x, y) in &points {
            assert!((LEFT..=WIDTH - RIGHT).contains(x) && (TOP - 0.1..=HEIGHT - BOTTOM + 0.1).contains(y), "{x} {y}");
        }
        let p50 = &points[points.len() - 3..];
        assert!(p50[0].1 > p50[1].1 && p50[1].1 > p50[2].1, "{p50:?}");
    }

    #[test]
    fn nothing_measured_and_a_single_window_are_pictures_too() {
        for windows in [&[][..], &[(0.0, 5.0)]] {
            let svg = svg(&measured(windows));
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), windows.len() * SERIES.len());
        }
    }
}
