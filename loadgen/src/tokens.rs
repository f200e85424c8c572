//! Tokens for all clients, signed before the clock starts.
//!
//! For a gateway of its own, loadgen makes an Ed25519 key that lives as long as the run and gives the gateway its
//! public half. For somebody else's gateway the key or secret comes from a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::world::World;

/// How long tokens are valid, in s: longer than any run, and than the day that `verify` moves clocks by.
const VALID_S: u64 = 72 * 3_600;

/// The name of our key in the JWKS.
const KEY_ID: &str = "millrace-loadgen";

/// DER before the 32 bytes of an Ed25519 private key (RFC 8410, PKCS #8 version 0).
const ED25519_DER_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A key file that can't be read.
    #[error("can't read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A key that is none, or a signature that failed.
    #[error("can't sign tokens: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
    /// A foreign gateway accepts only tokens that its owner signs.
    #[error(
        "--target needs --ed25519-key-file or --hs256-secret-file, to sign tokens that the gateway accepts"
    )]
    NoKey,
}

/// Signs tokens.
pub struct Signer {
    key: EncodingKey,
    header: Header,
    audience: Option<String>,
    issuer: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

impl Signer {
    /// With a new key, and the JWKS text that a gateway verifies by.
    pub fn generate() -> Result<(Self, String), TokenError> {
        let mut der = ED25519_DER_PREFIX.to_vec();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("randomness from the operating system");
        der.extend_from_slice(&seed);
        let key = EncodingKey::from_ed_der(&der);
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA)?;
        jwk.common.key_id = Some(KEY_ID.to_owned());
        let set = serde_json::to_string(&JwkSet { keys: vec![jwk] }).expect("a JWKS is plain data");
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(KEY_ID.to_owned());
        Ok((Signer { key, header, audience: None, issuer: None }, set))
    }

    /// With the key of a foreign gateway's owner: an Ed25519 private key in PEM, or a shared secret (a newline at its
    /// end is not part of it). The Ed25519 key is named `key_id` in the gateway's JWKS, if it is.
    pub fn from_files(
        ed25519: Option<&Path>,
        hs256: Option<&Path>,
        key_id: Option<String>,
    ) -> Result<Self, TokenError> {
        let read =
            |path: &Path| fs::read(path).map_err(|error| TokenError::Read { path: path.to_owned(), error });
        let (key, mut header) = match (ed25519, hs256) {
            (Some(path), _) => (EncodingKey::from_ed_pem(&read(path)?)?, Header::new(Algorithm::EdDSA)),
            (None, Some(path)) => {
                let mut secret = read(path)?;
                while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                    secret.pop();
                }
                (EncodingKey::from_secret(&secret), Header::new(Algorithm::HS256))
            }
            (None, None) => return Err(TokenError::NoKey),
        };
        header.kid = key_id;
        Ok(Signer { key, header, audience: None, issuer: None })
    }

    /// Adds `aud` and `iss` to all tokens.
    pub fn naming(mut self, audience: Option<String>, issuer: Option<String>) -> Self {
        self.audience = audience;
        self.issuer = issuer;
        self
    }

    /// A token for one user.
    pub fn sign_one(&self, user: &str) -> Result<Box<str>, TokenError> {
        self.sign(user, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    fn sign(&self, user: &str, now_s: u64) -> Result<Box<str>, TokenError> {
        let claims = Claims {
            sub: user,
            // A gateway whose clock is a little behind accepts it too.
            iat: now_s.saturating_sub(60),
            exp: now_s + VALID_S,
            aud: self.audience.as_deref(),
            iss: self.issuer.as_deref(),
        };
        Ok(jsonwebtoken::encode(&self.header, &claims, &self.key)?.into_boxed_str())
    }

    /// A token for every user of the world, by number. `signed` is called with how many were added.
    pub fn sign_all(&self, world: &World, signed: impl Fn(u64) + Sync) -> Result<Vec<Box<str>>, TokenError> {
        const CHUNK: u32 = 256;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let threads = millrace_edge::affinity::cpu_count() as u32;
        let each = world.clients().div_ceil(threads).max(1);
        let sign_range = |from: u32, to: u32| -> Result<Vec<Box<str>>, TokenError> {
            let mut tokens = Vec::with_capacity((to - from) as usize);
            for client in from..to {
                tokens.push(self.sign(&world.user(client), now_s)?);
                if (client - from) % CHUNK == CHUNK - 1 {
                    signed(u64::from(CHUNK));
                }
            }
            Ok(tokens)
        };
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..threads)
                .map(|n| (n * each).min(world.clients()))
                .map(|from| (from, (from + each).min(world.clients())))
                .map(|(from, to)| scope.spawn(move || sign_range(from, to)))
                .collect();
            let mut all = Vec::with_capacity(world.clients() as usize);
            for part in parts {
                all.extend(part.join().expect("signing does not panic")?);
            }
            Ok(all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn tokens_verify_against_the_jwks() {
        let world = World::new(1, 5, false, &[], 0);
        let (signer, jwks) = Signer::generate().unwrap();
        let tokens = signer.naming(Some("chat".into()), None).sign_all(&world, |_| {}).unwrap();
        let set: JwkSet = serde_json::from_str(&jwks).unwrap();
        let key = DecodingKey::from_jwk(set.find(KEY_ID).unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["chat"]);
        for (client, token) in tokens.iter().enumerate() {
            let decoded = jsonwebtoken::decode::<serde_json::Value>(&**token, &key, &validation).unwrap();
            assert_eq!(decoded.claims["sub"], world.user(client as u32));
        }
        assert_eq!(tokens.len(), 5);
    }

    #[test]
    fn a_secret_from_a_file_signs_hs256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"secret\n").unwrap();
        let signer = Signer::from_files(None, Some(file.path()), None).unwrap();
        let token = signer.sign("alice", 2_000_000_000).unwrap();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        let key = DecodingKey::from_secret(b"secret");
        assert!(jsonwebtoken::decode::<serde_json::Value>(&*token, &key, &validation).is_ok());
        assert!(matches!(Signer::from_files(None, None, None), Err(TokenError::NoKey)));
    }
}
