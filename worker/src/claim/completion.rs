//! Pure: when a split job is complete, asked after each part, without ever listing all parts.
//!
//! In: the number of a part that has just been put, then answers to what is asked. Out: what to ask next. Parts lie in
//! folders of [`GROUP`]: who put a part lists its folder only; who finds it full puts a marker that says what is in it,
//! and lists the markers; who finds all of them puts the manifest. Each step may be done twice, by anybody, at any time.

use inferq_shared::job::ObjectFormat;
use inferq_shared::manifest::{GROUP, Part, group_name, group_size, part_name};

/// The folder of the markers, below the job's.
pub const DONE: &str = "_done/";

/// What to find out or to do next. Names are below the job's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Which of these does the folder hold? Answer with [`Completion::listed`].
    List {
        /// The folder.
        folder: String,
        /// The names that count.
        names: Vec<String>,
    },
    /// What is in each of these parts? Answer with [`Completion::seen`].
    Look(Vec<String>),
    /// Put this marker if it is absent; then [`Completion::marked`].
    Mark {
        /// Its name.
        name: String,
        /// What it says.
        parts: Vec<Part>,
    },
    /// Read these markers. Answer with [`Completion::read`].
    Read(Vec<String>),
    /// The job is complete: put the manifest if it is absent, and answer the job.
    Finish(Vec<Part>),
    /// Others will see to the rest.
    Nothing,
}

/// One part's look at its job.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    number: u32,
    count: u32,
    format: ObjectFormat,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Parts,
    Markers,
}

impl Completion {
    /// After part `number` of `count` was put.
    pub fn after(number: u32, count: u32, format: ObjectFormat) -> (Self, Ask) {
        let completion = Self { number, count, format, step: Step::Parts };
        let ask = Ask::List { folder: group_name(completion.group()), names: completion.parts() };
        (completion, ask)
    }

    /// How many of the names that count are there.
    pub fn listed(&self, found: usize) -> Ask {
        match self.step {
            Step::Parts if found == self.parts().len() || crate::mutant::active("manifest_too_early") => {
                Ask::Look(self.parts())
            }
            Step::Markers if found == self.markers().len() => Ask::Read(self.markers()),
            _ => Ask::Nothing,
        }
    }

    /// What is in the parts of the folder.
    pub fn seen(&self, parts: Vec<Part>) -> Ask {
        Ask::Mark { name: marker_name(self.group()), parts }
    }

    /// The folder's marker is there.
    pub fn marked(&mut self) -> Ask {
        self.step = Step::Markers;
        Ask::List { folder: DONE.to_owned(), names: self.markers() }
    }

    /// What the markers say, in their order.
    pub fn read(&self, markers: Vec<Vec<Part>>) -> Ask {
        Ask::Finish(markers.into_iter().flatten().collect())
    }

    fn group(&self) -> u32 {
        self.number / GROUP
    }

    fn parts(&self) -> Vec<String> {
        let first = self.group() * GROUP;
        (first..first + group_size(self.group(), self.count)).map(|number| part_name(number, self.format)).collect()
    }

    fn markers(&self) -> Vec<String> {
        (0..self.count.div_ceil(GROUP)).map(marker_name).collect()
    }
}

fn marker_name(group: u32) -> String {
    format!("{DONE}{group:03}.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use inferq_shared::reply::{Status, Usage};
    use proptest::prelude::*;

    use super::*;

    /// A store in memory that counts what it is asked, and the names that its lists bring.
    #[derive(Default)]
    struct Store {
        objects: BTreeMap<String, Vec<Part>>,
        requests: usize,
        listed: usize,
        finished: Vec<Vec<Part>>,
    }

    impl Store {
        fn put(&mut self, name: String, parts: Vec<Part>) {
            self.requests += 1;
            self.objects.entry(name).or_insert(parts);
        }

        fn list(&mut self, folder: &str, names: &[String]) -> usize {
            let found = self.objects.keys().filter(|name| name.starts_with(folder));
            let found: Vec<&String> = found.collect();
            self.requests += found.len().div_ceil(1000).max(1);
            self.listed += found.len();
            found.into_iter().filter(|name| names.contains(name)).count()
        }

        /// One step; `None` when there is nothing more to do.
        fn answer(&mut self, completion: &mut Completion, ask: Ask) -> Option<Ask> {
            Some(match ask {
                Ask::List { folder, names } => {
                    let found = self.list(&folder, &names);
                    completion.listed(found)
                }
                Ask::Look(names) => {
                    self.requests += names.len();
                    completion.seen(names.iter().flat_map(|name| self.objects[name].clone()).collect())
                }
                Ask::Mark { name, parts } => {
                    self.put(name, parts);
                    completion.marked()
                }
                Ask::Read(names) => {
                    self.requests += names.len();
                    completion.read(names.iter().map(|name| self.objects[name].clone()).collect())
                }
                Ask::Finish(parts) => {
                    self.requests += 1;
                    self.finished.push(parts);
                    return None;
                }
                Ask::Nothing => return None,
            })
        }
    }

    fn part(number: u32) -> Part {
        let name = part_name(number, ObjectFormat::Jsonl);
        Part { name, status: Status::Succeeded, usage: Usage { items: 1, tokens: number.into() } }
    }

    fn put(store: &mut Store, number: u32) {
        store.put(part_name(number, ObjectFormat::Jsonl), vec![part(number)]);
    }

    #[test]
    fn ten_thousand_parts_cost_a_few_requests_each() {
        const COUNT: u32 = 10_000;
        let mut store = Store::default();
        for number in 0..COUNT {
            // Each looks first whether its part is there.
            store.requests += 1;
            put(&mut store, number);
            let (mut completion, ask) = Completion::after(number, COUNT, ObjectFormat::Jsonl);
            let mut next = Some(ask);
            while let Some(ask) = next {
                next = store.answer(&mut completion, ask);
            }
        }
        assert_eq!(store.finished, [(0..COUNT).map(part).collect::<Vec<_>>()]);
        // Look, put, list; and for each part once a look when its folder is full. No list is longer than a folder.
        assert!(store.requests <= 4 * COUNT as usize + 500, "{} requests", store.requests);
        assert!(store.listed <= 51 * COUNT as usize + 100 * 100, "{} names", store.listed);
    }

    proptest! {
        /// Parts come in any order, their steps interleave, and any shard may stop anywhere and begin anew.
        #[test]
        fn whoever_comes_last_finishes(count in 1u32..230, choices in proptest::collection::vec(any::<u32>(), 1..400)) {
            let mut store = Store::default();
            let mut waiting: Vec<u32> = (0..count).collect();
            let mut running: Vec<(Completion, Ask)> = Vec::new();
            for turn in 0.. {
                let choice = choices[turn % choices.len()].rotate_left(turn as u32) as usize;
                if waiting.is_empty() && running.is_empty() {
                    break;
                }
                if !waiting.is_empty() && (running.is_empty() || choice.is_multiple_of(3)) {
                    let number = waiting.swap_remove(choice / 3 % waiting.len());
                    put(&mut store, number);
                    running.push(Completion::after(number, count, ObjectFormat::Jsonl));
                    continue;
                }
                let (mut completion, ask) = running.swap_remove(choice % running.len());
                if choice.is_multiple_of(7) && turn < 2000 {
                    // Its worker is killed; the shard comes again.
                    waiting.push(completion.number);
                } else if let Some(ask) = store.answer(&mut completion, ask) {
                    running.push((completion, ask));
                }
            }
            prop_assert!(!store.finished.is_empty());
            for parts in &store.finished {
                prop_assert_eq!(parts, &(0..count).map(part).collect::<Vec<_>>());
            }
        }
    }
}
