//! Certificates for servers that tests start: an authority that nobody else knows, and what it vouches for.
//!
//! Out: PEM texts. Nothing here is kept: each test makes its own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

/// An authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A server's certificate, as PEM.
#[derive(Debug)]
pub struct Identity {
    /// The certificate of who vouches for it.
    pub authority: String,
    /// Its own.
    pub certificate: String,
    /// The key to that.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, key()).expect("an authority signs itself"))
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// What a server of this name shows.
    pub fn identity(&self, host: &str) -> Identity {
        let (params, key) = (CertificateParams::new([host.to_owned()]).expect("a host's name"), key());
        let certificate = params.signed_by(&key, &self.0).expect("an authority signs");
        Identity { authority: self.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
