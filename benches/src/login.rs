//! Who a client is: signed tokens checked against keys of every kind, and resume tickets.

use std::hint::black_box;
use std::io::Write;
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use millrace_gateway::shell::auth::Keys;
use millrace_gateway::shell::config::AuthSettings;
use millrace_gateway::shell::ticket::{Claims, Tickets};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{Path, Run, path};

pub(crate) const PATHS: &[Path] = &[
    path("login/token-ed25519", 1, 20, || token(Algorithm::EdDSA)),
    path("login/token-p256", 1, 20, || token(Algorithm::ES256)),
    path("login/token-hs256", 1, 100, || token(Algorithm::HS256)),
    path("login/ticket-check", 1, 100, ticket_check),
    path("login/ticket-make", 1, 100, ticket_make),
];

/// The gateway's keys of its tests.
const P256: &[u8] = include_bytes!("../../gateway/tests/keys/p256.pem");
const SECRET: &[u8] = b"a secret of these benches, 32 bytes and more";
const KEY_NAME: &str = "bench";
/// 2100-01-01: the same token in every run, so that its check takes the same steps.
const EXPIRES_S: u64 = 4_102_444_800;
const NOW_MS: u64 = 1_800_000_000_000;

/// Finds the key and checks signature and claims of one token.
fn token(algorithm: Algorithm) -> Run {
    let key = match algorithm {
        Algorithm::EdDSA => {
            // PKCS #8 in DER before the 32 bytes of the key (RFC 8410, section 7).
            let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
            der.extend([7; 32]);
            EncodingKey::from_ed_der(&der)
        }
        Algorithm::ES256 => EncodingKey::from_ec_pem(P256).expect("a key"),
        _ => EncodingKey::from_secret(SECRET),
    };
    let claims = json!({ "sub": "alice", "iat": NOW_MS / 1_000, "exp": EXPIRES_S });
    let kid = (algorithm != Algorithm::HS256).then(|| KEY_NAME.to_owned());
    let token = encode(&Header { kid, ..Header::new(algorithm) }, &claims, &key).expect("a token");
    let keys = keys(algorithm, &key);
    Box::new(move || {
        black_box(keys.check(&token).expect("a good token"));
    })
}

/// Keys as a gateway reads them: from files.
fn keys(algorithm: Algorithm, key: &EncodingKey) -> Keys {
    let hs256 = algorithm == Algorithm::HS256;
    let text = if hs256 {
        SECRET.to_vec()
    } else {
        let mut jwk = Jwk::from_encoding_key(key, algorithm).expect("its public half");
        jwk.common.key_id = Some(KEY_NAME.to_owned());
        json!({ "keys": [jwk] }).to_string().into_bytes()
    };
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&text).expect("room for it");
    let path = file.path().to_owned();
    let settings = AuthSettings {
        jwks_file: (!hs256).then(|| path.clone()),
        hs256_secret_file: hs256.then_some(path),
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::from_secs(5),
        token_bytes_max: 8_192,
        ticket_secret_file: None,
        ticket_lifetime: Duration::from_secs(60),
    };
    Keys::load(&settings, None).expect("a usable key")
}

const CLAIMS: Claims<'static> = Claims {
    user: "alice",
    device: "phone",
    platform: "ios",
    login_number: 42,
    token_expires_ms: EXPIRES_S * 1_000,
};

fn ticket_check() -> Run {
    let tickets = Tickets::new(SECRET, Duration::from_secs(60));
    let ticket = tickets.make(&CLAIMS, NOW_MS);
    Box::new(move || {
        black_box(tickets.check(&ticket, "phone", "ios", NOW_MS).expect("a good ticket"));
    })
}

fn ticket_make() -> Run {
    let tickets = Tickets::new(SECRET, Duration::from_secs(60));
    Box::new(move || {
        black_box(tickets.make(&CLAIMS, NOW_MS));
    })
}
