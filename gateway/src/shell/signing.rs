//! Making tokens: the key that a standalone gateway makes for itself, and `millrace-gateway token`.
//!
//! Whoever runs only public keys can't sign here, and is told so. Private files are made with mode 0600, whole or
//! not at all, and the first of two processes that make one wins.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};

use super::auth::{AuthError, read_secret};
use super::config::{AuthSettings, Settings};
use super::log;

/// The key in a standalone data directory: Ed25519, PKCS #8 in DER (`openssl pkey -inform DER` reads it).
const OWN_KEY_FILE: &str = "token-key.pk8";
/// What the tokens of that key call it.
const OWN_KEY_NAME: &str = "standalone";
/// DER of a PKCS #8 Ed25519 private key before its 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A key that makes tokens.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    name: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("algorithm", &self.algorithm)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// The signer that fits a configuration: the HS256 secret, or a standalone gateway's own key, made if there is
    /// none yet. `None` where only public keys are configured.
    ///
    /// # Errors
    /// The secret or the data directory can't be read or written.
    pub fn for_settings(settings: &Settings) -> Result<Option<Self>, AuthError> {
        let auth = &settings.auth;
        if let Some(path) = &auth.hs256_secret_file {
            let key = EncodingKey::from_secret(&read_secret(path)?);
            return Ok(Some(Self::new(key, Algorithm::HS256, None, auth)));
        }
        if auth.jwks_file.is_some() || !settings.is_standalone() {
            return Ok(None);
        }
        Self::own(&settings.data_dir, auth).map(Some)
    }

    fn own(directory: &Path, auth: &AuthSettings) -> Result<Self, AuthError> {
        let path = directory.join(OWN_KEY_FILE);
        let made = private_file(&path, || {
            let mut der = PKCS8_PREFIX.to_vec();
            der.extend(random::<32>()?);
            Ok(der)
        });
        let der = made.map_err(|error| AuthError::Io { path: path.clone(), error })?;
        if der.len() != PKCS8_PREFIX.len() + 32 || der[..PKCS8_PREFIX.len()] != PKCS8_PREFIX {
            return Err(AuthError::BadOwnKey { path });
        }
        Ok(Self::new(EncodingKey::from_ed_der(&der), Algorithm::EdDSA, Some(OWN_KEY_NAME.to_owned()), auth))
    }

    fn new(key: EncodingKey, algorithm: Algorithm, name: Option<String>, auth: &AuthSettings) -> Self {
        let (issuer, audience) = (auth.issuers.first().cloned(), auth.audiences.first().cloned());
        Signer { key, algorithm, name, issuer, audience }
    }

    /// Name and public half of an asymmetric key.
    pub(super) fn public_key(&self) -> Option<(String, DecodingKey)> {
        let name = self.name.clone()?;
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).ok()?;
        Some((name, DecodingKey::from_jwk(&jwk).ok()?))
    }

    /// A token for `user`, valid from now for `ttl`.
    ///
    /// # Errors
    /// The key can't sign.
    pub fn token(&self, user: &str, ttl: Duration) -> Result<String, jsonwebtoken::errors::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut claims = serde_json::json!({
            "sub": user,
            "iat": now.as_secs(),
            // Whole seconds, rounded up: a token of one second must not be dead at birth.
            "exp": (now + ttl).as_secs() + 1,
        });
        for (name, value) in [("iss", &self.issuer), ("aud", &self.audience)] {
            if let Some(value) = value {
                claims[name] = value.as_str().into();
            }
        }
        encode(&Header { kid: self.name.clone(), ..Header::new(self.algorithm) }, &claims, &self.key)
    }
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// The bytes of a private file, made with `make` if it is not there. Its directory is made too.
pub(super) fn private_file(path: &Path, make: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let mode = std::fs::metadata(path)?.permissions().mode();
            if mode & 0o077 != 0 {
                log::warn(format_args!(
                    "{} can be read by others (mode {:o}): chmod 600",
                    path.display(),
                    mode & 0o777
                ));
            }
            return Ok(bytes);
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let unique = u64::from_ne_bytes(random()?);
    let temporary = path.with_extension(format!("{unique:016x}.new"));
    let written =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(
            |mut file| {
                file.write_all(&make()?)?;
                file.sync_all()
            },
        );
    // A link, unlike a rename, does not replace what another process made meanwhile.
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::read(path),
    }
}

/// Reads a time to live: a number with s, m, h or d.
///
/// # Errors
/// What was expected.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a time such as 90s, 15m, 24h or 30d, at most 3650d");
    let (at, unit) = text.char_indices().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = text[..at].parse().map_err(|_| expected())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=3_650 * 86_400).contains(total));
    total.map(Duration::from_secs).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_made_once_and_for_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/secret");
        assert_eq!(private_file(&path, || Ok(b"first".to_vec())).unwrap(), b"first");
        assert_eq!(private_file(&path, || Ok(b"second".to_vec())).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing temporary is left"
        );
    }

    #[test]
    fn ttls_read_as_written() {
        for (text, seconds) in
            [("90s", Some(90)), ("15m", Some(900)), ("24h", Some(86_400)), ("30d", Some(2_592_000))]
        {
            assert_eq!(parse_ttl(text).ok().map(|ttl| ttl.as_secs()), seconds, "{text}");
        }
        for text in ["", "5", "h", "-1h", "1.5h", "0s", "3651d", "99999999999999999999d", "5é"] {
            assert!(parse_ttl(text).unwrap_err().contains("90s, 15m"), "{text}");
        }
    }
}
