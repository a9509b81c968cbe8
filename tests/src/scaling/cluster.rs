//! Nodes: how they come, are filled, go, and are taken away.
//!
//! In: pods that have no place, the time. Out: nodes to start and to remove, and what each cost. One worker's pod knows only
//! which node it is on.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::scaling::{Ms, ms, seconds};

/// Numbers a node by its place in the list of all that ever were.
pub type NodeId = usize;

/// What a node pool is like.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// `--max-nodes`.
    pub nodes_max: u32,
    /// Worker pods that fit a node.
    pub pods_a_node: u32,
    /// From the request for a node to a pod's first container on it, without the image: fastest and slowest, in seconds.
    pub start_s: (f64, f64),
    /// The image's pull, once a node: fastest and slowest, in seconds.
    pub pull_s: (f64, f64),
    /// `--scale-down-unneeded-time`: a node without workers is removed after it.
    pub unneeded_s: f64,
    /// What an hour of a node costs.
    pub price_an_hour: f64,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asked for, not there yet.
    Starting,
    /// There.
    Ready,
    /// Told that it will be taken away: nothing is placed on it.
    Leaving,
    /// Removed.
    Gone,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// How it stands.
    pub state: State,
    pods: u32,
    born: Ms,
    gone: Option<Ms>,
    empty_since: Ms,
    image_at: Option<Ms>,
}

/// All nodes of a pool.
#[derive(Debug)]
pub struct Cluster {
    pool: Pool,
    nodes: Vec<Node>,
    out_of_stock_until: Ms,
}

impl Cluster {
    /// Without a node.
    pub fn new(pool: Pool) -> Self {
        Self { pool, nodes: Vec::new(), out_of_stock_until: 0 }
    }

    /// Nodes that cost something now.
    pub fn count(&self) -> u32 {
        self.nodes.iter().filter(|node| node.state != State::Gone).count() as u32
    }

    /// Whether it is there and may be taken.
    pub fn is_ready(&self, id: NodeId) -> bool {
        self.nodes[id].state == State::Ready
    }

    /// The nodes that are there.
    pub fn ready(&self) -> Vec<NodeId> {
        (0..self.nodes.len()).filter(|&id| self.is_ready(id)).collect()
    }

    /// Starts the nodes that so many pods without a place need; when each will be there.
    pub fn grow(&mut self, now: Ms, pending: u32, random: &mut StdRng) -> Vec<(NodeId, Ms)> {
        let coming: u32 = self.nodes.iter().filter(|node| node.state == State::Starting).count() as u32;
        let missing = pending.div_ceil(self.pool.pods_a_node).saturating_sub(coming);
        let room = self.pool.nodes_max.saturating_sub(self.count());
        let mut started = Vec::new();
        for _ in 0..missing.min(room) {
            let begin = now.max(self.out_of_stock_until);
            let ready = begin + between(random, self.pool.start_s);
            // While there is no machine nothing is paid.
            self.nodes.push(Node {
                state: State::Starting,
                pods: 0,
                born: begin,
                gone: None,
                empty_since: ready,
                image_at: None,
            });
            started.push((self.nodes.len() - 1, ready));
        }
        started
    }

    /// It is there.
    pub fn arrive(&mut self, id: NodeId, now: Ms) {
        let node = &mut self.nodes[id];
        if node.state == State::Starting {
            node.state = State::Ready;
            node.empty_since = now;
        }
    }

    /// A place for a pod, on the fullest node that has one, and when the image will be there.
    pub fn place(&mut self, now: Ms, random: &mut StdRng) -> Option<(NodeId, Ms)> {
        let room = self.pool.pods_a_node;
        let candidates = self.nodes.iter().enumerate();
        let candidates = candidates.filter(|(_, node)| node.state == State::Ready && node.pods < room);
        let (id, _) = candidates.max_by_key(|(id, node)| (node.pods, std::cmp::Reverse(*id)))?;
        let pull = between(random, self.pool.pull_s);
        let node = &mut self.nodes[id];
        node.pods += 1;
        Some((id, (*node.image_at.get_or_insert(now + pull)).max(now)))
    }

    /// A pod has left it.
    pub fn vacate(&mut self, id: NodeId, now: Ms) {
        let node = &mut self.nodes[id];
        node.pods = node.pods.saturating_sub(1);
        if node.pods == 0 {
            node.empty_since = now;
        }
    }

    /// Removes those that nobody has needed for long enough.
    pub fn shrink(&mut self, now: Ms) {
        let unneeded = ms(self.pool.unneeded_s);
        for node in &mut self.nodes {
            if node.state == State::Ready && node.pods == 0 && now >= node.empty_since + unneeded {
                node.state = State::Gone;
                node.gone = Some(now);
            }
        }
    }

    /// Nothing is placed on it any more.
    pub fn leave(&mut self, id: NodeId) {
        self.nodes[id].state = State::Leaving;
    }

    /// It is taken away.
    pub fn lose(&mut self, id: NodeId, now: Ms) {
        let node = &mut self.nodes[id];
        if node.state != State::Gone {
            node.state = State::Gone;
            node.gone = Some(now);
        }
        node.pods = 0;
    }

    /// No node can be had until then.
    pub fn sell_out(&mut self, until: Ms) {
        self.out_of_stock_until = self.out_of_stock_until.max(until);
    }

    /// Hours of all nodes so far.
    pub fn hours(&self, now: Ms) -> f64 {
        let paid = |node: &Node| node.gone.unwrap_or(now).saturating_sub(node.born);
        self.nodes.iter().map(|node| seconds(paid(node))).sum::<f64>() / 3600.0
    }
}

/// A length of time between two.
pub fn between(random: &mut StdRng, (low, high): (f64, f64)) -> Ms {
    if high <= low { ms(low) } else { ms(random.random_range(low..high)) }
}
