//! Whether a graphics card has reported a fault of its hardware, as NVIDIA's management library tells it.
//!
//! In: the card's place on the bus. Out: what is wrong with it, if something is. Where the library is missing, or the card
//! tells nothing, nothing is wrong: calls that fail and answers that are checked show the rest.

use std::sync::{Mutex, PoisonError};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::padded::Sick;

/// Reports after which a card must be reset or replaced: uncorrectable memory errors, an unreachable card, NVLink, its
/// firmware; <https://docs.nvidia.com/deploy/xid-errors/>. Others, such as 13, 31 and 43, are faults of one program: the
/// program's own calls fail.
const FATAL: [u64; 12] = [48, 62, 64, 74, 79, 92, 94, 95, 109, 119, 120, 140];

/// Watches the card at this address.
pub(super) fn watch(bus: &str) -> Sick {
    // For as long as the process lives, as the card is used.
    let Ok(nvml) = Nvml::init() else { return Box::new(|| None) };
    let nvml: &'static Nvml = Box::leak(Box::new(nvml));
    let Ok(card) = nvml.device_by_pci_bus_id(bus) else { return Box::new(|| None) };
    let before = uncorrectable(&card);
    let events = Mutex::new(events(nvml, &card));
    Box::new(move || {
        let errors = uncorrectable(&card).zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
        if errors > 0 {
            return Some(format!("the card reports {errors} uncorrectable memory errors (ECC)"));
        }
        let events = events.lock().unwrap_or_else(PoisonError::into_inner);
        // Each that has come, without waiting for more.
        let come = std::iter::from_fn(|| events.as_ref()?.wait(0).ok());
        let fatal = come.filter_map(|event| event.event_data).find_map(|xid| match xid {
            XidError::Value(xid) if FATAL.contains(&xid) => Some(xid),
            _ => None,
        });
        fatal.map(|xid| format!("the card reports Xid {xid}"))
    })
}

/// Since the driver was loaded.
fn uncorrectable(card: &Device<'_>) -> Option<u64> {
    card.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok()
}

fn events(nvml: &'static Nvml, card: &Device<'static>) -> Option<EventSet<'static>> {
    card.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set().ok()?).ok()
}
