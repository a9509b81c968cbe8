//! Any text is an address that is written and read back unchanged, or a fault.

#![no_main]

use inferq_shared::broker::BrokerUrl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(url) = text.parse::<BrokerUrl>() {
        assert_eq!(url.to_string().parse().as_ref(), Ok(&url));
    }
});
