//! From a model's weights to engines, on each device that is to run it.
//!
//! In: weights, devices, a precision. Out: a model a device, which knows what the processor makes of some inputs, and the
//! replicas around it. It is the only place that opens devices.

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::super::bert::{Bert, BertConfig};
use super::super::device::{Place, Precision};
use super::super::faults::Faulty;
use super::super::model::{BurnEngine, KnownAnswer, Model, Runner};
use super::super::padded::{On, Padded};
use super::super::pooling::Pooling;
use super::super::stream::Stream;
use super::super::weights::Weights;
use super::super::{Engine, unit};
use super::{Kernels, LoadError, LoadOptions};

/// Engines on one card: one packs and uploads its batch while the other's runs.
const A_CARD: NonZeroUsize = NonZeroUsize::new(2).expect("two are some");

/// Lengths of the inputs that a device's answers are compared for with the processor's: of one batch with hardly any
/// padding, of some, and the longest.
const COMPARED: [usize; 4] = [3, 16, 100, usize::MAX];

/// How the model runs on one device.
pub(super) enum Target {
    /// With our kernels, on the processor.
    Host(Device),
    /// In padded batches, with burn's operations.
    Padded(On),
}

/// How a model of this revision runs on each device. Kernels are kept for all cards together, with the first.
pub(super) fn targets(options: &LoadOptions, revision: &str) -> Result<Vec<Target>, LoadError> {
    let numbered = options.places.iter().enumerate();
    numbered.map(|(number, place)| Target::of(*place, options, (number == 0).then_some(revision))).collect()
}

impl Target {
    /// `keep` is the model's revision, where kernels are to be kept.
    fn of(place: Place, options: &LoadOptions, keep: Option<&str>) -> Result<Self, LoadError> {
        match (place, options.kernels, options.precision) {
            (Place::Cpu, Kernels::Own, None | Some(Precision::F32)) => Ok(Self::Host(Device::flex())),
            (Place::Cpu, Kernels::Own, Some(precision)) => Err(LoadError::Device(format!(
                "precision {precision} is for graphics cards: on the processor it is slower and less exact than f32"
            ))),
            (Place::Cpu, Kernels::Burn, precision) => {
                let precision = precision.unwrap_or(Precision::F32);
                Ok(Self::Padded(On { device: Device::flex(), precision, kernels: None, sick: Box::new(|| None) }))
            }
            (Place::Cuda(card), ..) => Self::on_card(card, options, keep),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_card(card: u16, options: &LoadOptions, keep: Option<&str>) -> Result<Self, LoadError> {
        super::super::cuda::open(card, options, keep).map(Self::Padded).map_err(LoadError::Device)
    }

    #[cfg(not(feature = "cuda"))]
    fn on_card(card: u16, _: &LoadOptions, _: Option<&str>) -> Result<Self, LoadError> {
        Err(LoadError::Device(format!("no device cuda:{card} in this build")))
    }

    fn device(&self) -> &Device {
        match self {
            Self::Host(device) => device,
            Self::Padded(on) => &on.device,
        }
    }

    pub(super) fn precision(&self) -> Precision {
        match self {
            Self::Host(_) => Precision::F32,
            Self::Padded(on) => on.precision,
        }
    }
}

/// What a model is read with.
pub(super) struct Reading {
    pub(super) config: BertConfig,
    pub(super) pooling: Pooling,
    pub(super) max_tokens: usize,
}

impl Reading {
    /// The model on each device. Each that is not computed by our kernels knows what those make of some inputs.
    pub(super) fn models(&self, weights: &Weights<'_>, targets: &[Target]) -> Result<Vec<Model>, LoadError> {
        let read = |device: &Device, precision| {
            let bert = Bert::load(self.config.clone(), weights, device, precision)?;
            let Self { pooling, max_tokens, .. } = *self;
            Ok::<_, LoadError>(Model { bert, pooling, max_tokens, known: Vec::new(), faulty: None })
        };
        let is_foreign = targets.iter().any(|target| matches!(target, Target::Padded(..)));
        let ours = is_foreign.then(|| known(read(&Device::flex(), Precision::F32)?)).transpose()?.unwrap_or_default();
        let with_known = |target: &Target| {
            let mut model = read(target.device(), target.precision())?;
            if let Target::Padded(..) = target {
                let tolerance = target.precision().tolerance();
                model.known = ours.iter().map(|answer| KnownAnswer { tolerance, ..answer.clone() }).collect();
            }
            Ok(model)
        };
        targets.iter().map(with_known).collect()
    }
}

/// What our kernels make of some inputs, where it is something at all; as exact as they are.
fn known(ours: Model) -> Result<Vec<KnownAnswer>, LoadError> {
    let engine = BurnEngine { model: Arc::new(ours), runner: Runner::Host(pool(cores())?) };
    let answer = |length| {
        let tokens = engine.model.sample(length);
        let expected = unit(&engine.vectors(&[&tokens]).ok()?[0])?;
        let (tolerance, source) = (Precision::F32.tolerance(), "a sample that the processor computed");
        Some(KnownAnswer { tokens, expected, tolerance, source })
    };
    Ok(COMPARED.into_iter().filter_map(answer).collect())
}

/// The engines of all devices, in turn.
pub(super) fn replicas(
    models: impl Iterator<Item = (Model, Target)>,
    options: &LoadOptions,
) -> Result<Vec<Box<dyn Engine>>, LoadError> {
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    for (mut model, target) in models {
        model.faulty = options.fault.map(Faulty::new);
        let model = Arc::new(model);
        match target {
            Target::Host(_) => {
                let a_core = NonZeroUsize::new(cores().get() / options.threads.get()).unwrap_or(NonZeroUsize::MIN);
                for _ in 0..options.replicas.unwrap_or(a_core).get() {
                    let runner = Runner::Host(pool(options.threads)?);
                    engines.push(Box::new(BurnEngine { model: Arc::clone(&model), runner }));
                }
            }
            Target::Padded(on) => {
                let padded = Arc::new(Padded::new(on, options.attention, options.batch_tokens));
                engines.extend((0..options.replicas.unwrap_or(A_CARD).get()).map(|_| -> Box<dyn Engine> {
                    Box::new(BurnEngine {
                        model: Arc::clone(&model),
                        runner: Runner::Padded(Arc::clone(&padded), Stream::new()),
                    })
                }));
            }
        }
    }
    Ok(engines)
}

pub(super) fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

pub(super) fn pool(threads: NonZeroUsize) -> Result<ThreadPool, LoadError> {
    let built = ThreadPoolBuilder::new().num_threads(threads.get()).thread_name(|i| format!("engine-{i}")).build();
    built.map_err(|error| LoadError::Device(format!("no threads to compute with: {error}")))
}
