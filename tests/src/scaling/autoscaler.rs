//! What KEDA and the horizontal pod autoscaler make of metrics.
//!
//! In: the time, how many replicas there are, each trigger's value. Out: how many there should be. It knows nothing of queues
//! and pods.
//!
//! Sources: the Kubernetes documentation "Horizontal Pod Autoscaling" (algorithm details, configurable scaling behaviour) and
//! `pkg/controller/podautoscaler` (`GetExternalPerPodMetricReplicas`, `stabilizeRecommendationWithBehaviors`,
//! `calculateScaleUpLimitWithScalingRules`, `calculateScaleDownLimitWithBehaviors`); KEDA's documentation "ScaledObject
//! specification" and "Scaling Deployments", and `pkg/scaling/executor/scale_scaledobjects.go`.

use crate::scaling::{Ms, ms};

/// What a trigger looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Messages without an answer.
    Messages,
    /// Those × mean tokens of a message ÷ tokens a second of one worker.
    SecondsOfWork,
    /// Tokens computed a second over the last minutes ÷ tokens a second of one worker: how many workers are busy.
    BusyWorkers,
}

/// A trigger of the ScaledObject, of metric type AverageValue.
#[derive(Debug, Clone, Copy)]
pub struct Trigger {
    /// What it looks at.
    pub signal: Signal,
    /// `threshold`: how much of it one worker is for.
    pub target: f64,
    /// `activationThreshold`: it is active above that.
    pub activation: f64,
}

/// How far replicas may go in a period.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// So many pods.
    Pods(u32),
    /// So many percent of those at the period's beginning.
    Percent(u32),
}

/// A scaling policy.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// How far.
    pub step: Step,
    /// In how many seconds.
    pub period_s: u32,
}

/// `behavior.scaleUp` or `behavior.scaleDown`; of several policies the one that allows most, as is the default.
#[derive(Debug, Clone)]
pub struct Rules {
    /// `stabilizationWindowSeconds`.
    pub stabilization_s: u32,
    /// `policies`.
    pub policies: Vec<Policy>,
}

/// A ScaledObject and what the cluster adds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of several the HPA takes the most replicas; one active trigger wakes from zero.
    pub triggers: Vec<Trigger>,
    /// `minReplicaCount`.
    pub min_replicas: u32,
    /// `maxReplicaCount`.
    pub max_replicas: u32,
    /// `pollingInterval`: how often KEDA looks whether to wake or to go to zero.
    pub polling_s: u32,
    /// `cooldownPeriod`: from the last active trigger to zero.
    pub cooldown_s: u32,
    /// `--horizontal-pod-autoscaler-sync-period`, 15 s if not set; on GKE not to be set.
    pub sync_s: u32,
    /// `--horizontal-pod-autoscaler-tolerance`, 0.1 if not set.
    pub tolerance: f64,
    /// Upwards.
    pub up: Rules,
    /// Downwards.
    pub down: Rules,
}

/// The HPA's and KEDA's memory.
#[derive(Debug)]
pub struct Autoscaler {
    settings: Settings,
    recommendations: Vec<(Ms, u32)>,
    ups: Vec<(Ms, u32)>,
    downs: Vec<(Ms, u32)>,
    active_at: Option<Ms>,
}

impl Autoscaler {
    /// One that remembers nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings, recommendations: Vec::new(), ups: Vec::new(), downs: Vec::new(), active_at: None }
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The HPA's turn. `values` are the triggers' values, in their order. Without replicas it is switched off.
    pub fn sync(&mut self, now: Ms, current: u32, values: &[f64]) -> u32 {
        if current == 0 {
            return 0;
        }
        let settings = &self.settings;
        let wanted = settings.triggers.iter().zip(values);
        let wanted = wanted.map(|(trigger, &value)| replicas(value, trigger.target, current, settings.tolerance)).max();
        // KEDA gives the HPA a minimum of at least 1: zero is its own business.
        let floor = settings.min_replicas.max(1);
        let wanted = wanted.unwrap_or(current).clamp(floor, settings.max_replicas);
        let stable = self.stabilized(now, current, wanted);
        let next = self.limited(now, current, stable);
        let next = next.clamp(floor.min(current), self.settings.max_replicas.max(current));
        self.note(now, current, next);
        next
    }

    /// KEDA's turn: whether to wake from zero, or to go there.
    pub fn poll(&mut self, now: Ms, current: u32, values: &[f64]) -> u32 {
        let settings = &self.settings;
        let is_active = settings.triggers.iter().zip(values).any(|(trigger, &value)| value > trigger.activation);
        if is_active {
            self.active_at = Some(now);
            return if current == 0 { settings.min_replicas.max(1) } else { current };
        }
        if settings.min_replicas > 0 {
            return current.max(settings.min_replicas);
        }
        let cooled = self.active_at.is_none_or(|at| now > at + Ms::from(settings.cooldown_s) * 1000);
        if cooled { 0 } else { current }
    }

    /// The most cautious recommendation within each direction's window.
    fn stabilized(&mut self, now: Ms, current: u32, wanted: u32) -> u32 {
        let within = |window_s: u32| {
            let window = Ms::from(window_s) * 1000;
            move |&&(at, _): &&(Ms, u32)| at + window > now
        };
        let (up_s, down_s) = (self.settings.up.stabilization_s, self.settings.down.stabilization_s);
        let ups = self.recommendations.iter().filter(within(up_s)).map(|&(_, count)| count);
        let lowest = ups.min().unwrap_or(wanted).min(wanted);
        let downs = self.recommendations.iter().filter(within(down_s)).map(|&(_, count)| count);
        let highest = downs.max().unwrap_or(wanted).max(wanted);
        let longest = Ms::from(up_s.max(down_s)) * 1000;
        self.recommendations.retain(|&(at, _)| at + longest > now);
        self.recommendations.push((now, wanted));
        current.max(lowest).min(highest)
    }

    /// As far as the policies allow.
    fn limited(&mut self, now: Ms, current: u32, wanted: u32) -> u32 {
        let most_s = |rules: &Rules| rules.policies.iter().map(|policy| policy.period_s).max().unwrap_or(0);
        let keep = Ms::from(most_s(&self.settings.up).max(most_s(&self.settings.down))) * 1000;
        self.ups.retain(|&(at, _)| at + keep > now);
        self.downs.retain(|&(at, _)| at + keep > now);
        let at_beginning = |policy: &Policy| {
            let since = |events: &[(Ms, u32)]| -> u32 {
                let period = Ms::from(policy.period_s) * 1000;
                events.iter().filter(|&&(at, _)| at + period > now).map(|&(_, count)| count).sum()
            };
            (current + since(&self.downs)).saturating_sub(since(&self.ups))
        };
        if wanted > current {
            let limits = self.settings.up.policies.iter().map(|policy| match policy.step {
                Step::Pods(count) => at_beginning(policy) + count,
                Step::Percent(percent) => {
                    (f64::from(at_beginning(policy)) * (1.0 + f64::from(percent) / 100.0)).ceil() as u32
                }
            });
            wanted.min(limits.max().unwrap_or(wanted).max(current))
        } else if wanted < current {
            let limits = self.settings.down.policies.iter().map(|policy| match policy.step {
                Step::Pods(count) => at_beginning(policy).saturating_sub(count),
                Step::Percent(percent) => {
                    (f64::from(at_beginning(policy)) * (1.0 - f64::from(percent.min(100)) / 100.0)) as u32
                }
            });
            wanted.max(limits.min().unwrap_or(wanted).min(current))
        } else {
            current
        }
    }

    fn note(&mut self, now: Ms, current: u32, next: u32) {
        if next > current {
            self.ups.push((now, next - current));
        } else if next < current {
            self.downs.push((now, current - next));
        }
    }
}

/// The replicas for a value, unless what there is lies within the tolerance.
fn replicas(value: f64, target: f64, current: u32, tolerance: f64) -> u32 {
    let ratio = value / (target * f64::from(current));
    if (ratio - 1.0).abs() <= tolerance { current } else { (value / target).ceil() as u32 }
}

/// When something that happens every so many seconds happens next.
pub fn next_turn(now: Ms, every_s: u32) -> Ms {
    now + ms(f64::from(every_s))
}
