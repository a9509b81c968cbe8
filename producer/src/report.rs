//! What a load measured: latencies to percentiles, in bounded memory. Pure.
//!
//! In: for each answer when its job was due and how long after that it came. Out: percentiles over all,
//! and over time. Latencies are kept to three significant digits, however many there are; those beyond
//! [`LATENCY_MAX`] count as that. It never averages percentiles.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is told apart.
pub const LATENCY_MAX: Duration = Duration::from_secs(24 * 3600);
/// Points over time, at most.
pub const WINDOWS_MAX: u64 = 120;

/// Collects latencies.
#[derive(Debug, Clone)]
pub struct Latencies {
    all: Histogram<u64>,
    windows: BTreeMap<u64, Histogram<u64>>,
    window: Duration,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Answers.
    pub count: u64,
    /// Half took no longer.
    pub p50: f64,
    /// Nine in ten took no longer.
    pub p90: f64,
    /// 99 in a hundred took no longer.
    pub p99: f64,
    /// 999 in a thousand took no longer.
    pub p999: f64,
    /// None took longer.
    pub max: f64,
}

/// The answers to the jobs that were due within one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Window {
    /// When it begins, in seconds since the load's beginning.
    pub from_s: f64,
    /// Its latencies.
    #[serde(flatten)]
    pub latency_ms: Percentiles,
}

impl Latencies {
    /// Of a load of this length.
    pub fn new(length: Duration) -> Self {
        let seconds = length.as_secs_f64() / WINDOWS_MAX as f64;
        // Whole seconds, or tenths for a short load: round numbers on the axis.
        let step = if seconds <= 0.1 { 0.1 } else { seconds.ceil() };
        Self { all: histogram(), windows: BTreeMap::new(), window: Duration::from_secs_f64(step) }
    }

    /// Records an answer that came `latency` after its job was due, `due` after the load's beginning.
    pub fn record(&mut self, due: Duration, latency: Duration) {
        let us = u64::try_from(latency.min(LATENCY_MAX).as_micros()).unwrap_or(u64::MAX);
        let window = (due.as_secs_f64() / self.window.as_secs_f64()) as u64;
        for latencies in [&mut self.all, self.windows.entry(window).or_insert_with(histogram)] {
            latencies.record(us).expect("it grows with what it holds");
        }
    }

    /// Over all answers.
    pub fn percentiles(&self) -> Percentiles {
        percentiles(&self.all)
    }

    /// By when the jobs were due.
    pub fn windows(&self) -> Vec<Window> {
        let window = |(number, latencies): (&u64, &Histogram<u64>)| Window {
            from_s: *number as f64 * self.window.as_secs_f64(),
            latency_ms: percentiles(latencies),
        };
        self.windows.iter().map(window).collect()
    }
}

/// To three significant digits, and only as large as what it holds.
fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are few enough")
}

fn percentiles(latencies: &Histogram<u64>) -> Percentiles {
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Percentiles {
        count: latencies.len(),
        p50: ms(0.5),
        p90: ms(0.9),
        p99: ms(0.99),
        p999: ms(0.999),
        max: latencies.max() as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(latencies_us: &[u64]) -> Latencies {
        let mut latencies = Latencies::new(Duration::from_secs(60));
        for (n, us) in latencies_us.iter().enumerate() {
            latencies.record(Duration::from_millis(n as u64 * 7), Duration::from_micros(*us));
        }
        latencies
    }

    #[test]
    fn a_thousand_latencies_have_the_percentiles_that_counting_gives() {
        let p = of(&(1..=1000).map(|ms| ms * 1000).collect::<Vec<_>>()).percentiles();
        for (got, expected) in [(p.p50, 500.0), (p.p90, 900.0), (p.p99, 990.0), (p.p999, 999.0), (p.max, 1000.0)] {
            assert!((got - expected).abs() <= expected / 1000.0, "{got} for {expected}");
        }
    }

    #[test]
    fn nothing_measured_is_no_latency() {
        assert_eq!(of(&[]).percentiles(), Percentiles::default());
        assert!(of(&[]).windows().is_empty());
        let endless = of(&[u64::MAX]);
        assert!(endless.percentiles().max >= LATENCY_MAX.as_millis() as f64);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_list(mut us in prop::collection::vec(1u64..100_000_000, 1..400)) {
            let p = of(&us).percentiles();
            us.sort_unstable();
            let rank = |quantile: f64| us[((us.len() as f64 * quantile).ceil() as usize).max(1) - 1] as f64 / 1000.0;
            for (got, quantile) in [(p.p50, 0.5), (p.p90, 0.9), (p.p99, 0.99), (p.p999, 0.999), (p.max, 1.0)] {
                let expected = rank(quantile);
                prop_assert!((got - expected).abs() <= expected / 500.0 + 0.001, "{} for {} at {}", got, expected, quantile);
            }
        }

        #[test]
        fn every_answer_is_in_one_window_and_they_are_few(dues in prop::collection::vec(0u64..3_600_000, 1..300), length_s in 1u64..3600) {
            let mut latencies = Latencies::new(Duration::from_secs(length_s));
            let due = |ms: &u64| Duration::from_millis(ms % (length_s * 1000));
            dues.iter().for_each(|ms| latencies.record(due(ms), Duration::from_millis(3)));
            let windows = latencies.windows();
            prop_assert!(windows.len() as u64 <= WINDOWS_MAX);
            prop_assert!(windows.is_sorted_by(|a, b| a.from_s < b.from_s));
            prop_assert_eq!(windows.iter().map(|window| window.latency_ms.count).sum::<u64>(), dues.len() as u64);
        }
    }
}
