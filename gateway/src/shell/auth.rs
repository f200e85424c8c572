//! Whether a token proves who a client is: JWTs checked here, without asking anybody.
//!
//! EdDSA, ES256 and RS256 against the public keys of a JWKS file, HS256 only when asked for. The rule that keeps it
//! right: the key decides the algorithm, never the token. A token names a key (`kid`), that key has one algorithm,
//! and a header that says another is refused. [`Keys`] never change; SIGHUP builds new ones and hands them to the
//! shards. Making tokens is [`super::signing`]'s business, how many are checked a turn [`super::logins`]'s.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use millrace_protocol::conversation::is_name;
use millrace_protocol::messages::client::Code;
use serde::Deserialize;

use super::config::{AuthSettings, SECRET_BYTES_MIN};
use super::log;
use super::signing::Signer;
use crate::core::event::{Identity, Refusal};

/// Keys of a set at most: a file with more is not what it should be.
const KEYS_MAX: usize = 256;
/// Base64 length of an RSA modulus of 2048 bits; shorter keys are refused.
const RSA_MODULUS_CHARS_MIN: usize = 341;
/// Base64 length of 32 bytes: an Ed25519 key, or a coordinate on P-256.
const COORDINATE_CHARS: usize = 43;

/// Keys that can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AuthError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path} is no JSON Web Key Set: {error}", path = path.display())]
    NoKeySet { path: PathBuf, error: serde_json::Error },
    #[error("{path} holds {found} keys; at most {KEYS_MAX} are taken", path = path.display())]
    TooMany { path: PathBuf, found: usize },
    #[error("{path} holds no usable key (Ed25519, P-256, or RSA of 2048 bits and more)", path = path.display())]
    NoUsableKey { path: PathBuf },
    #[error("{path} holds two keys named {kid:?}", path = path.display())]
    Twice { path: PathBuf, kid: String },
    #[error("{path} holds {found} bytes; a secret needs at least {SECRET_BYTES_MIN}", path = path.display())]
    ShortSecret { path: PathBuf, found: usize },
    #[error("{path} holds no Ed25519 key in PKCS #8 form: move it away, and a new one is made", path = path.display())]
    BadOwnKey { path: PathBuf },
}

/// One key, and the one way in which it is used.
#[derive(Debug)]
struct Key {
    decoding: DecodingKey,
    validation: Validation,
}

/// Everything that tokens are checked against.
#[derive(Debug)]
pub struct Keys {
    named: HashMap<String, Key>,
    nameless: Vec<Key>,
    hs256: Option<Key>,
    token_bytes_max: usize,
}

/// The claims that are read, of any type: [`Validation`] says what is wrong with them better than a parser would.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: serde_json::Value,
    /// Seconds since 1970, possibly with a fraction.
    #[serde(default)]
    exp: serde_json::Value,
}

impl Keys {
    /// Reads the configured files. `own` is the key of a standalone gateway without configured ones.
    ///
    /// # Errors
    /// A file can't be read or holds no usable key. (Single unusable keys of a set are logged and left out.)
    pub fn load(settings: &AuthSettings, own: Option<&Signer>) -> Result<Self, AuthError> {
        let mut keys = Keys {
            named: HashMap::new(),
            nameless: Vec::new(),
            hs256: None,
            token_bytes_max: settings.token_bytes_max,
        };
        if let Some(path) = &settings.jwks_file {
            keys.add_set(path, settings)?;
        }
        if let Some(path) = &settings.hs256_secret_file {
            let decoding = DecodingKey::from_secret(&read_secret(path)?);
            keys.hs256 = Some(Key { decoding, validation: validation(Algorithm::HS256, settings) });
        }
        if let Some((name, decoding)) = own.and_then(Signer::public_key) {
            keys.named.insert(name, Key { decoding, validation: validation(Algorithm::EdDSA, settings) });
        }
        Ok(keys)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.named.len() + self.nameless.len() + usize::from(self.hs256.is_some())
    }

    /// Whether no token can pass.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The longest token that is looked at, in bytes.
    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    fn add_set(&mut self, path: &Path, settings: &AuthSettings) -> Result<(), AuthError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let text = std::fs::read(path).map_err(|error| AuthError::Io { path: path.to_owned(), error })?;
        let set: Set = serde_json::from_slice(&text)
            .map_err(|error| AuthError::NoKeySet { path: path.to_owned(), error })?;
        if set.keys.len() > KEYS_MAX {
            return Err(AuthError::TooMany { path: path.to_owned(), found: set.keys.len() });
        }
        for (index, value) in set.keys.into_iter().enumerate() {
            match usable(value) {
                Ok((jwk, algorithm, decoding)) => {
                    let key = Key { decoding, validation: validation(algorithm, settings) };
                    match jwk.common.key_id {
                        Some(kid) if self.named.contains_key(&kid) => {
                            return Err(AuthError::Twice { path: path.to_owned(), kid });
                        }
                        Some(kid) => drop(self.named.insert(kid, key)),
                        None => self.nameless.push(key),
                    }
                }
                Err(why) => log::warn(format_args!("{}: key {index} is left out: {why}", path.display())),
            }
        }
        if self.named.is_empty() && self.nameless.is_empty() {
            return Err(AuthError::NoUsableKey { path: path.to_owned() });
        }
        Ok(())
    }

    /// Checks a token: some 50 us of work for a signature.
    ///
    /// # Errors
    /// Code and reason for the client.
    pub fn check(&self, token: &str) -> Result<Identity, Refusal> {
        if token.len() > self.token_bytes_max {
            return Err(bad(format!("the token has {} bytes, over {}", token.len(), self.token_bytes_max)));
        }
        let header = decode_header(token).map_err(|_| bad("this is no JWT (header.payload.signature)"))?;
        let key = self.key_for(header.kid.as_deref(), header.alg)?;
        let claims =
            decode::<Claims>(token, &key.decoding, &key.validation).map_err(|error| explain(&error))?.claims;
        let user = claims.sub.as_str().filter(|user| is_name(user));
        let user = user.ok_or_else(|| bad("`sub` must be a user name: 1-64 of A-Z a-z 0-9 . _ - @ +"))?;
        // Casts from float saturate: a date beyond all time stays there.
        let expires_wall_ms = (claims.exp.as_f64().unwrap_or_default() * 1_000.0) as u64;
        Ok(Identity { user: user.to_owned(), expires_wall_ms, login_number: 0 })
    }

    fn key_for(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, Refusal> {
        if algorithm == Algorithm::HS256 {
            return self.hs256.as_ref().ok_or_else(|| bad("HS256 is not accepted here"));
        }
        let key = match kid {
            Some(kid) => {
                self.named.get(kid).ok_or_else(|| bad("`kid` names no key that this gateway knows"))?
            }
            None => {
                let mut fitting = self
                    .nameless
                    .iter()
                    .chain(self.named.values())
                    .filter(|key| key.validation.algorithms.contains(&algorithm));
                match (fitting.next(), fitting.next()) {
                    (Some(key), None) => key,
                    (None, _) => return Err(bad(format!("no key here checks {algorithm:?}"))),
                    _ => return Err(bad("the token names no key (`kid`), and several would do")),
                }
            }
        };
        if !key.validation.algorithms.contains(&algorithm) {
            return Err(bad(format!("{algorithm:?} is not what this key is for")));
        }
        Ok(key)
    }
}

/// What is demanded of the claims.
fn validation(algorithm: Algorithm, settings: &AuthSettings) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = settings.leeway.as_secs();
    validation.validate_nbf = true;
    let mut required = vec!["exp", "sub"];
    if !settings.issuers.is_empty() {
        validation.set_issuer(&settings.issuers);
        required.push("iss");
    }
    if !settings.audiences.is_empty() {
        validation.set_audience(&settings.audiences);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// Reads one entry of a key set; the algorithm follows from the key.
fn usable(value: serde_json::Value) -> Result<(Jwk, Algorithm, DecodingKey), String> {
    let jwk: Jwk = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Err("it is for encryption".to_owned());
    }
    let chars = |text: &str| text.trim_end_matches('=').len();
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            if chars(&pair.x) != COORDINATE_CHARS {
                return Err("`x` must be 32 bytes".to_owned());
            }
            Algorithm::EdDSA
        }
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
            if chars(&point.x) != COORDINATE_CHARS || chars(&point.y) != COORDINATE_CHARS {
                return Err("`x` and `y` must be 32 bytes each".to_owned());
            }
            Algorithm::ES256
        }
        AlgorithmParameters::RSA(rsa) => {
            if chars(&rsa.n) < RSA_MODULUS_CHARS_MIN {
                return Err("an RSA key needs 2048 bits".to_owned());
            }
            Algorithm::RS256
        }
        AlgorithmParameters::OctetKey(_) => {
            return Err("a shared secret has no place in a key set".to_owned());
        }
        _ => return Err("its type is none of Ed25519, P-256 and RSA".to_owned()),
    };
    if let Some(stated) = jwk.common.key_algorithm
        && stated.to_string() != format!("{algorithm:?}")
    {
        return Err(format!("its `alg` is {stated}, but such a key is used with {algorithm:?} here"));
    }
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    Ok((jwk, algorithm, decoding))
}

/// Reads a secret file; one line break at its end is not part of it.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>, AuthError> {
    let mut secret = std::fs::read(path).map_err(|error| AuthError::Io { path: path.to_owned(), error })?;
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    if secret.len() < SECRET_BYTES_MIN {
        return Err(AuthError::ShortSecret { path: path.to_owned(), found: secret.len() });
    }
    Ok(secret)
}

fn explain(error: &jsonwebtoken::errors::Error) -> Refusal {
    match error.kind() {
        ErrorKind::ExpiredSignature => {
            let reason = "the token has expired: get a new one".to_owned();
            Refusal { code: Code::TokenExpired, reason, retry_after_ms: 0 }
        }
        ErrorKind::ImmatureSignature => bad("the token is not valid yet (`nbf`): check the clocks"),
        ErrorKind::InvalidIssuer => bad("`iss` is not an issuer that this gateway accepts"),
        ErrorKind::InvalidAudience => bad("`aud` does not name this gateway"),
        ErrorKind::MissingRequiredClaim(claim) => bad(format!("the claim `{claim}` is missing or malformed")),
        ErrorKind::InvalidClaimFormat(claim) => bad(format!("the claim `{claim}` is malformed")),
        ErrorKind::InvalidSignature => bad("the signature does not match"),
        ErrorKind::Json(_) | ErrorKind::Utf8(_) => bad("the claims can't be read"),
        _ => bad("the token can't be verified"),
    }
}

fn bad(reason: impl Into<String>) -> Refusal {
    Refusal { code: Code::BadToken, reason: reason.into(), retry_after_ms: 0 }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
