//! Faults of a device, on demand: so that every way in which a graphics card fails can be walked on any machine. For tests.
//!
//! In: what is to go wrong, and from which run of the engine on. Out: that. Checks run on the same device, so they meet the
//! same faults.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::EngineError;

/// What goes wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What was to be computed reads as zeros, and nothing says so: a kernel that could not be compiled.
    Zeros,
    /// No numbers at all.
    Nan,
    /// Slightly wrong numbers: a damaged memory cell.
    Wrong,
    /// No memory for more than one item.
    Oom,
    /// Every call fails, as after an illegal address, an uncorrectable memory error or a card that fell off its bus.
    Lost,
    /// One call fails, and what comes after works.
    Fail,
    /// No call ends.
    Hang,
}

const KINDS: [(&str, Kind); 7] = [
    ("zeros", Kind::Zeros),
    ("nan", Kind::Nan),
    ("wrong", Kind::Wrong),
    ("oom", Kind::Oom),
    ("lost", Kind::Lost),
    ("fail", Kind::Fail),
    ("hang", Kind::Hang),
];

/// One fault, and when it begins. Written `KIND@RUN`: `zeros@0` is there from the start, `hang@20` comes with the engine's
/// run of that number, checks and warming up counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    from: u64,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (name, run) = text.split_once('@')?;
            let (_, kind) = KINDS.into_iter().find(|(known, _)| *known == name)?;
            Some(Self { kind, from: run.parse().ok()? })
        };
        let kinds = KINDS.map(|(name, _)| name).join(", ");
        read().ok_or_else(|| format!("it is KIND@RUN, with a KIND of {kinds}, and a number"))
    }
}

/// A device with a fault: counts the runs of all its replicas.
#[derive(Debug)]
pub(super) struct Faulty {
    fault: Fault,
    runs: AtomicU64,
}

type Vectors = Vec<Arc<[f32]>>;

impl Faulty {
    pub(super) fn new(fault: Fault) -> Self {
        Self { fault, runs: AtomicU64::new(0) }
    }

    /// What a run of so many items comes to.
    pub(super) fn run(
        &self,
        items: usize,
        run: impl Fn() -> Result<Vectors, EngineError>,
    ) -> Result<Vectors, EngineError> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        if number < self.fault.from {
            return run();
        }
        let all = |change: fn(f32) -> f32| Ok(run()?.iter().map(|v| v.iter().copied().map(change).collect()).collect());
        match self.fault.kind {
            Kind::Zeros => all(|_| 0.0),
            Kind::Nan => all(|_| f32::NAN),
            Kind::Wrong => all(|value| value.abs()),
            Kind::Oom if items > 1 => Err(EngineError::OutOfMemory("injected: no memory for two items".to_owned())),
            Kind::Oom => run(),
            Kind::Lost => Err(EngineError::DeviceLost("injected: every call fails".to_owned())),
            Kind::Fail if number == self.fault.from => Err(EngineError::Failed("injected: one call fails".to_owned())),
            Kind::Fail => run(),
            Kind::Hang => loop {
                std::thread::park();
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_what_is_none_is_refused() {
        assert_eq!("zeros@0".parse(), Ok(Fault { kind: Kind::Zeros, from: 0 }));
        assert_eq!("hang@20".parse(), Ok(Fault { kind: Kind::Hang, from: 20 }));
        for text in ["", "zeros", "zeros@", "zeros@x", "sick@1", "@1"] {
            assert!(text.parse::<Fault>().unwrap_err().contains("zeros, nan, wrong"), "{text}");
        }
    }

    #[test]
    fn a_fault_begins_with_its_run() {
        let run = || Ok(vec![Arc::from([1.0, -1.0])]);
        for (kind, expected) in [(Kind::Zeros, Ok(0.0)), (Kind::Wrong, Ok(1.0)), (Kind::Lost, Err(()))] {
            let faulty = Faulty::new(Fault { kind, from: 1 });
            assert_eq!(faulty.run(1, run).unwrap()[0][1], -1.0);
            let second = faulty.run(1, run).map(|vectors| vectors[0][1]).map_err(drop);
            assert_eq!(second, expected, "{kind:?}");
        }
        let faulty = Faulty::new(Fault { kind: Kind::Fail, from: 0 });
        assert!(faulty.run(1, run).is_err() && faulty.run(1, run).is_ok());
    }
}
