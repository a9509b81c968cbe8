//! Any bytes are a reply that is written and read back as the same bytes, or a fault.

#![no_main]

use inferq_shared::reply::Reply;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| match Reply::decode(body) {
    Ok(reply) => {
        // Bytes, not values: a base64 embedding may hold NaN, which equals nothing.
        let encoded = reply.encode();
        let again = Reply::decode(&encoded).expect("what was written can be read");
        assert_eq!(again.encode(), encoded);
    }
    Err(error) => assert!(error.to_string().len() < 1024, "{error:?}"),
});
