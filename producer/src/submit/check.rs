//! What is looked for in an input before it is published: lines that are no items, and ids that stand twice.
//!
//! In: the flags of the input. Out: an [`CheckedInput`] that may be published, or why not, with the places. What can be read
//! twice is looked through first, so that a refusal comes before anything is published; stdin is looked at while it is
//! published. It never holds more than a few megabytes, and makes files only for a great many ids.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::duplicates::{Ids, Repeats};
use crate::outcome::Error;
use crate::progress::{Progress, Tally, Total, grouped};
use crate::recipe::{InputArgs, OnBadInput};
use crate::source::{Entry, Place, Source, Unit};

/// Lines that are named one by one.
const NAMED: usize = 20;
/// Entries between two looks at the clock and the stop signal.
const LOOK_EVERY: u64 = 4096;

/// An input that may be published.
pub struct CheckedInput {
    pub(super) source: Source,
    pub(super) check: Check,
}

impl CheckedInput {
    /// Reads the whole input once where that can be done and there is something to look for. Sorting ids may take files
    /// in `folder`.
    ///
    /// # Errors
    /// When the input can't be read, has ids twice, or has bad lines that it must not have.
    pub fn of(args: &InputArgs, folder: &Path, stop: &CancellationToken) -> Result<Self, Error> {
        let source = args.source()?;
        source.check_files()?;
        let needed = source.may_have_ids() || args.on_bad_input == OnBadInput::Fail;
        let Some(first) = source.again().filter(|_| needed) else {
            let check = Check::while_publishing(args.on_bad_input, &source, folder);
            return Ok(Self { source, check });
        };
        let check = Check::beforehand(args.on_bad_input, &source, folder);
        look_through(first, check, source.again(), stop, |_| ())?;
        Ok(Self { source, check: Check::done() })
    }

    /// An input that was checked when it was submitted before.
    ///
    /// # Errors
    /// When the input can't be read.
    pub fn as_before(args: &InputArgs) -> Result<Self, Error> {
        Ok(Self { source: args.source()?, check: Check::done() })
    }
}

/// Reads a whole input, shows each entry to the check and then to `visit`, and says on stderr how far it is. `again` is
/// a second stream of it, for what is wrong to be named.
///
/// # Errors
/// When the input can't be read, the check refuses it, or a signal came.
pub(super) fn look_through(
    mut source: Source,
    mut check: Check,
    again: Option<Source>,
    stop: &CancellationToken,
    mut visit: impl FnMut(Entry),
) -> Result<(), Error> {
    let progress = Progress::of("items checked");
    let mut entries = 0u64;
    while let Some(entry) = source.next_entry()? {
        if let Some(line) = check.see(&entry)? {
            progress.note(&line);
        }
        visit(entry);
        entries += 1;
        if entries.is_multiple_of(LOOK_EVERY) {
            if stop.is_cancelled() {
                return Err(Error::Interrupted("interrupted while the input was checked; nothing is published".into()));
            }
            progress.expect(Total::estimate(entries, source.fraction_read()));
            progress.reach(Tally { items: entries, tokens: 0 });
        }
    }
    if let Some(line) = check.more_bad_lines() {
        progress.note(&line);
    }
    progress.finish();
    check.end(again)
}

/// When the entries are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before anything is published.
    Beforehand,
    /// While it is.
    Publishing,
}

/// What was met so far.
pub(super) struct Check {
    when: When,
    on_bad_input: OnBadInput,
    /// Bad lines are not counted where they were before.
    counts_bad: bool,
    bad: u64,
    ids: Option<Ids>,
    places: Places,
}

impl Check {
    pub(super) fn beforehand(on_bad_input: OnBadInput, source: &Source, folder: &Path) -> Self {
        let ids = source.may_have_ids().then(|| Ids::new(folder));
        Self { when: When::Beforehand, on_bad_input, counts_bad: true, bad: 0, ids, places: Places::default() }
    }

    fn while_publishing(on_bad_input: OnBadInput, source: &Source, folder: &Path) -> Self {
        Self { when: When::Publishing, ..Self::beforehand(on_bad_input, source, folder) }
    }

    /// Everything was looked at before.
    fn done() -> Self {
        Self {
            when: When::Publishing,
            on_bad_input: OnBadInput::Skip,
            counts_bad: false,
            bad: 0,
            ids: None,
            places: Places::default(),
        }
    }

    /// Looks at an entry. Returns a line for people, if there is something to say.
    ///
    /// # Errors
    /// When the entry must not be, or its id can't be kept.
    pub(super) fn see(&mut self, entry: &Entry) -> Result<Option<String>, Error> {
        if let (Some(ids), Some(id)) = (&mut self.ids, entry.id()) {
            ids.add(id, self.places.pack(&entry.place)).map_err(cant_sort)?;
        }
        let Err(bad) = &entry.content else { return Ok(None) };
        if !self.counts_bad {
            return Ok(None);
        }
        self.bad += 1;
        let line = format!("bad input: {}", bad.error.message);
        if (self.when, self.on_bad_input) == (When::Publishing, OnBadInput::Fail) {
            return Err(Error::Usage(format!("{line}; what came before it is published")));
        }
        Ok((self.bad <= NAMED as u64).then_some(line))
    }

    /// How many bad lines there were beyond those that were named.
    pub(super) fn more_bad_lines(&self) -> Option<String> {
        let more = self.bad.checked_sub(NAMED as u64).filter(|more| *more > 0)?;
        Some(format!("bad input: and {} more", grouped(more)))
    }

    /// Says what the whole input must not have. `again` is a second stream of it, where there can be one.
    ///
    /// # Errors
    /// When it has that.
    pub(super) fn end(self, again: Option<Source>) -> Result<(), Error> {
        let repeats = self.ids.map_or(Ok(Repeats::default()), |ids| ids.finish(NAMED)).map_err(cant_sort)?;
        let mut faults = Vec::new();
        if self.bad > 0 && self.on_bad_input == OnBadInput::Fail {
            let lines = if self.bad == 1 { "line is" } else { "lines are" };
            faults.push(format!("{} {lines} no good input; --on-bad-input skip leaves them out", grouped(self.bad)));
        }
        if repeats.count > 0 {
            faults.push(self.places.describe(&repeats, again)?);
        }
        if faults.is_empty() {
            return Ok(());
        }
        faults.push(match self.when {
            When::Beforehand => "nothing is published".to_owned(),
            When::Publishing => "what was read is published already: a file is looked through before".to_owned(),
        });
        Err(Error::Usage(faults.join("\n")))
    }
}

fn cant_sort(error: std::io::Error) -> Error {
    Error::io("can't sort the input's ids", error)
}

/// Places as numbers that are in the order of the input.
#[derive(Default)]
struct Places {
    files: Vec<(Arc<str>, Unit)>,
}

/// Lines of a file that a number has room for; files get the rest.
const NUMBER_BITS: u32 = 40;

impl Places {
    fn pack(&mut self, place: &Place) -> u64 {
        if self.files.last().is_none_or(|(name, _)| !Arc::ptr_eq(name, &place.name)) {
            self.files.push((place.name.clone(), place.unit));
        }
        ((self.files.len() as u64 - 1) << NUMBER_BITS) | place.number
    }

    fn unpack(&self, packed: u64) -> Place {
        let (name, unit) = self.files[(packed >> NUMBER_BITS) as usize].clone();
        Place { name, unit, number: packed & ((1 << NUMBER_BITS) - 1) }
    }

    fn describe(&self, repeats: &Repeats, again: Option<Source>) -> Result<String, Error> {
        let ids = again.map_or(Ok(BTreeMap::new()), |source| ids_at(source, repeats))?;
        let mut text = match repeats.count {
            1 => "1 id stands twice; an item is found again by its id".to_owned(),
            count => format!("{} ids stand twice; an item is found again by its id", grouped(count)),
        };
        for repeat in &repeats.first {
            let (at, before) = (self.unpack(repeat.at), self.unpack(repeat.before));
            let id = ids.get(&repeat.at).map_or_else(|| "the id".to_owned(), |id| format!("id {id:?}"));
            let before = if Arc::ptr_eq(&at.name, &before.name) { before.within_file() } else { before.to_string() };
            text += &format!("\n  {id} on {at} is on {before} already");
        }
        if let Some(more) = repeats.count.checked_sub(repeats.first.len() as u64).filter(|more| *more > 0) {
            text += &format!("\n  and {} more", grouped(more));
        }
        Ok(text)
    }
}

/// The ids at the places of `repeats`, from a second look at the input.
fn ids_at(mut source: Source, repeats: &Repeats) -> Result<BTreeMap<u64, String>, Error> {
    let mut places = Places::default();
    let mut found = BTreeMap::new();
    while found.len() < repeats.first.len()
        && let Some(entry) = source.next_entry()?
    {
        let at = places.pack(&entry.place);
        if let (Ok(_), Some(id)) = (repeats.first.binary_search_by_key(&at, |repeat| repeat.at), entry.id()) {
            found.insert(at, id.to_owned());
        }
    }
    Ok(found)
}
