//! Runs a batch on the processor, with our kernels, on threads of one replica's own.
//!
//! In: items of one model. Out: a vector for each, in order. Nothing is padded.

use std::sync::Arc;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::bert::ranges;
use super::model::{Model, of_execution};
use super::{EngineError, Tokens};

/// Tokens that one thread takes through the model at a time: few enough for their rows to stay in the cache, many
/// enough for the weights to be read seldom. Reasoned from cache sizes, not tuned.
const GROUP_TOKENS: usize = 512;

/// A vector for each item. Items are shared out in groups that each take a thread through the whole model, which leaves
/// nothing to wait for in between; a batch of one group has all threads in each operation.
pub(super) fn run(model: &Model, items: &[&Tokens], pool: &ThreadPool) -> Result<Vec<Arc<[f32]>>, EngineError> {
    let threads = pool.current_num_threads();
    let groups = groups(items, threads);
    if groups.len() < 2 {
        return pool.install(|| run_group(model, items, threads));
    }
    let run = |group: &Vec<usize>| {
        let items: Vec<&Tokens> = group.iter().map(|place| items[*place]).collect();
        run_group(model, &items, 1)
    };
    let run = || groups.par_iter().with_max_len(1).map(run).collect::<Result<Vec<_>, _>>();
    let vectors = pool.install(run)?;
    let mut placed: Vec<(usize, Arc<[f32]>)> =
        groups.into_iter().flatten().zip(vectors.into_iter().flatten()).collect();
    placed.sort_unstable_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, vector)| vector).collect())
}

fn run_group(model: &Model, items: &[&Tokens], threads: usize) -> Result<Vec<Arc<[f32]>>, EngineError> {
    let hidden = model.bert.forward(items, threads);
    let width = model.bert.config.hidden_size;
    let rows = hidden.try_into_data().map_err(|error| of_execution(&error))?;
    let rows = rows.as_slice::<f32>().map_err(|error| EngineError::Failed(error.to_string()))?;
    Ok(model.pooling.pool(rows, width, &ranges(items)))
}

/// The places of the items, in groups of at most [`GROUP_TOKENS`] tokens (or one item), as equal as can be and as many
/// as keep every thread busy.
fn groups(items: &[&Tokens], threads: usize) -> Vec<Vec<usize>> {
    let length = |place: usize| items[place].ids.len();
    let total: usize = (0..items.len()).map(length).sum();
    let wanted = total.div_ceil(GROUP_TOKENS).next_multiple_of(threads).min(items.len()).max(1);
    let mut places: Vec<usize> = (0..items.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(length(*place)));
    let mut groups = vec![(0, Vec::new()); wanted];
    for place in places {
        let lightest = groups.iter_mut().min_by_key(|(tokens, _)| *tokens).expect("at least one group is wanted");
        lightest.0 += length(place);
        lightest.1.push(place);
    }
    groups.into_iter().map(|(_, places)| places).filter(|places| !places.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_item_once_and_keep_all_threads_busy() {
        let lengths: Vec<usize> = (1..200).map(|i| i * 37 % 60 + 1).collect();
        let items: Vec<Tokens> =
            lengths.iter().map(|length| Tokens { ids: vec![1; *length], type_ids: vec![0; *length] }).collect();
        let items: Vec<&Tokens> = items.iter().collect();
        for (count, threads) in [(1, 4), (2, 2), (3, 2), (8, 3), (199, 1), (199, 2), (199, 7)] {
            let groups = groups(&items[..count], threads);
            let mut places: Vec<usize> = groups.iter().flatten().copied().collect();
            places.sort_unstable();
            assert_eq!(places, (0..count).collect::<Vec<_>>());
            assert!(groups.len() >= threads.min(count), "{count} items, {threads} threads: {} groups", groups.len());
            let tokens = |group: &Vec<usize>| group.iter().map(|place| lengths[*place]).sum::<usize>();
            assert!(groups.iter().all(|group| tokens(group) <= GROUP_TOKENS + 60));
        }
    }
}
