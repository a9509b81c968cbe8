//! What waits for its store's turn: a few at once for each bucket, so that one that is slow or down holds up no other.
//!
//! Pure. In: things with the address they are about and the bytes they may hold. Out: the next that may begin.

use std::collections::{BTreeMap, VecDeque};

use inferq_shared::bucket::{Scheme, Uri};

/// Calls to one store at once.
pub const AT_ONCE: usize = 16;

/// Which store: a bucket, or all files of this machine.
pub type Store = (Scheme, String);

/// Things in line, store by store.
#[derive(Debug)]
pub struct Stores<T> {
    lanes: BTreeMap<Store, Lane<T>>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<(usize, T)>,
    begun: usize,
    bytes: usize,
}

/// A thing that has begun; to be handed back when it is over.
#[derive(Debug)]
#[must_use = "what has begun takes its place until it is over"]
pub struct Begun {
    store: Store,
    bytes: usize,
}

impl<T> Stores<T> {
    /// Nothing in line. What has begun at one store holds at most `bytes_max`, or is one thing alone.
    pub fn new(bytes_max: usize) -> Self {
        Self { lanes: BTreeMap::new(), bytes_max }
    }

    /// Adds something about `uri` that holds up to `bytes` once it has begun.
    pub fn push(&mut self, uri: &Uri, bytes: usize, thing: T) {
        let lane = self.lanes.entry((uri.scheme(), uri.bucket().to_owned())).or_insert_with(Lane::new);
        lane.waiting.push_back((bytes, thing));
    }

    /// The next that may begin, if there is one.
    pub fn begin(&mut self) -> Option<(Begun, T)> {
        let bytes_max = self.bytes_max;
        self.lanes.iter_mut().find_map(|(store, lane)| {
            let (bytes, thing) = lane.begin(bytes_max)?;
            Some((Begun { store: store.clone(), bytes }, thing))
        })
    }

    /// Gives back the place of what has begun.
    pub fn over(&mut self, Begun { store, bytes }: Begun) {
        let Some(lane) = self.lanes.get_mut(&store) else { return };
        lane.begun -= 1;
        lane.bytes -= bytes;
        if lane.begun == 0 && lane.waiting.is_empty() {
            self.lanes.remove(&store);
        }
    }

    /// Whether nothing waits and nothing has begun.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), begun: 0, bytes: 0 }
    }

    fn begin(&mut self, bytes_max: usize) -> Option<(usize, T)> {
        let (bytes, _) = self.waiting.front()?;
        let fits = self.begun == 0 || (self.begun < AT_ONCE && self.bytes + bytes <= bytes_max);
        if !fits {
            return None;
        }
        let begun = self.waiting.pop_front()?;
        self.begun += 1;
        self.bytes += begun.0;
        Some(begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        Uri::parse(text).expect("an address")
    }

    #[test]
    fn a_store_has_a_few_at_once_and_holds_up_no_other() {
        let mut stores = Stores::new(1000);
        for number in 0..AT_ONCE + 1 {
            stores.push(&uri("s3://slow/a"), 1, number);
        }
        stores.push(&uri("s3://other/a"), 1, 99);
        let mut begun: Vec<_> = std::iter::from_fn(|| stores.begin()).collect();
        let mut things: Vec<_> = begun.iter().map(|(_, thing)| *thing).collect();
        things.sort_unstable();
        assert_eq!(things, (0..AT_ONCE).chain([99]).collect::<Vec<_>>());
        let at = begun.iter().position(|(_, thing)| *thing == 3).expect("it has begun");
        stores.over(begun.remove(at).0);
        assert_eq!(stores.begin().map(|(place, thing)| (begun.push((place, thing)), thing).1), Some(AT_ONCE));
        begun.into_iter().for_each(|(place, _)| stores.over(place));
        assert!(stores.is_empty());
    }

    #[test]
    fn large_things_take_turns_and_the_largest_goes_alone() {
        let mut stores = Stores::new(100);
        for bytes in [60, 50, 40, 500] {
            stores.push(&uri("file:///out/a"), bytes, bytes);
        }
        let (first, thing) = stores.begin().expect("the first");
        assert_eq!(thing, 60);
        assert!(stores.begin().is_none(), "60 and 50 are more than 100");
        stores.over(first);
        let next: Vec<_> = std::iter::from_fn(|| stores.begin()).collect();
        assert_eq!(next.iter().map(|(_, thing)| *thing).collect::<Vec<_>>(), [50, 40]);
        next.into_iter().for_each(|(place, _)| stores.over(place));
        assert_eq!(stores.begin().map(|(_, thing)| thing), Some(500));
    }
}
