//! Tokens of every kind, and every way in which one can be wrong.

use std::io::Write;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use super::*;

/// Keys for these tests alone.
const P256: &[u8] = include_bytes!("../../tests/keys/p256.pem");
const RSA: &[u8] = include_bytes!("../../tests/keys/rsa.pem");
const RSA_SHORT: &[u8] = include_bytes!("../../tests/keys/rsa1024.pem");
const SECRET: &[u8] = b"a secret of these tests, 32 bytes and more";

fn ed25519(seed: u8) -> EncodingKey {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    EncodingKey::from_ed_der(&der)
}

fn p256() -> EncodingKey {
    EncodingKey::from_ec_pem(P256).unwrap()
}

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(RSA).unwrap()
}

fn jwk(key: &EncodingKey, algorithm: Algorithm, kid: Option<&str>) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
    jwk.common.key_id = kid.map(str::to_owned);
    serde_json::to_value(jwk).unwrap()
}

fn settings() -> AuthSettings {
    AuthSettings {
        jwks_file: None,
        hs256_secret_file: None,
        issuers: vec![],
        audiences: vec![],
        leeway: Duration::from_secs(5),
        token_bytes_max: 8_192,
        ticket_secret_file: None,
        ticket_lifetime: Duration::from_secs(60),
    }
}

fn keys(set: &[Value], hs256: bool, change: impl FnOnce(&mut AuthSettings)) -> Result<Keys, AuthError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(json!({ "keys": set }).to_string().as_bytes()).unwrap();
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(SECRET).unwrap();
    let mut settings = settings();
    settings.jwks_file = (!set.is_empty()).then(|| file.path().to_owned());
    settings.hs256_secret_file = hs256.then(|| secret.path().to_owned());
    change(&mut settings);
    Keys::load(&settings, None)
}

fn sign(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    encode(&Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) }, claims, key).unwrap()
}

fn alice() -> Value {
    json!({ "sub": "alice", "exp": get_current_timestamp() + 60 })
}

fn all_keys() -> Keys {
    let set = [
        jwk(&ed25519(1), Algorithm::EdDSA, Some("ed")),
        jwk(&p256(), Algorithm::ES256, Some("ec")),
        jwk(&rsa(), Algorithm::RS256, Some("rsa")),
    ];
    keys(&set, true, |_| ()).unwrap()
}

#[test]
fn each_algorithm_passes_with_its_own_key() {
    let keys = all_keys();
    assert_eq!(keys.len(), 4);
    let hs256 = EncodingKey::from_secret(SECRET);
    for (algorithm, kid, key) in [
        (Algorithm::EdDSA, Some("ed"), ed25519(1)),
        (Algorithm::ES256, Some("ec"), p256()),
        (Algorithm::RS256, Some("rsa"), rsa()),
        (Algorithm::HS256, None, hs256),
        // One key of the kind: the token need not name it.
        (Algorithm::EdDSA, None, ed25519(1)),
    ] {
        let claims = alice();
        let identity = keys.check(&sign(algorithm, kid, &key, &claims)).expect("a good token");
        assert_eq!((identity.user.as_str(), identity.login_number), ("alice", 0));
        assert_eq!(identity.expires_wall_ms, claims["exp"].as_u64().unwrap() * 1_000);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let keys = all_keys();
    let ed = |claims: Value| sign(Algorithm::EdDSA, Some("ed"), &ed25519(1), &claims);
    let now = get_current_timestamp();
    let good = ed(alice());
    let public_as_secret =
        EncodingKey::from_secret(&serde_json::to_vec(&jwk(&rsa(), Algorithm::RS256, None)).unwrap());
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let cases: Vec<(String, Code, &str)> = vec![
        (String::new(), Code::BadToken, "no JWT"),
        ("a.b.c".to_owned(), Code::BadToken, "no JWT"),
        ("x".repeat(8_193), Code::BadToken, "8193 bytes, over 8192"),
        (none, Code::BadToken, "no JWT"),
        (format!("{head}.{payload}."), Code::BadToken, "does not match"),
        (format!("{head}.{payload}.{}", "A".repeat(signature.len())), Code::BadToken, "does not match"),
        (sign(Algorithm::EdDSA, Some("ed"), &ed25519(2), &alice()), Code::BadToken, "does not match"),
        (sign(Algorithm::EdDSA, Some("other"), &ed25519(1), &alice()), Code::BadToken, "`kid` names no key"),
        (
            sign(Algorithm::EdDSA, Some("rsa"), &ed25519(1), &alice()),
            Code::BadToken,
            "not what this key is for",
        ),
        (sign(Algorithm::RS512, Some("rsa"), &rsa(), &alice()), Code::BadToken, "not what this key is for"),
        (sign(Algorithm::HS256, Some("rsa"), &public_as_secret, &alice()), Code::BadToken, "does not match"),
        (
            sign(Algorithm::HS512, None, &EncodingKey::from_secret(SECRET), &alice()),
            Code::BadToken,
            "no key here checks",
        ),
        (ed(json!({ "sub": "alice", "exp": now - 60 })), Code::TokenExpired, "expired"),
        (ed(json!({ "sub": "alice" })), Code::BadToken, "`exp` is missing"),
        (ed(json!({ "sub": "alice", "exp": "soon" })), Code::BadToken, "`exp`"),
        (ed(json!({ "exp": now + 60 })), Code::BadToken, "`sub` is missing"),
        (ed(json!({ "sub": "al:ice", "exp": now + 60 })), Code::BadToken, "`sub` must be"),
        (ed(json!({ "sub": "", "exp": now + 60 })), Code::BadToken, "`sub` must be"),
        (ed(json!({ "sub": "alice", "exp": now + 60, "nbf": now + 30 })), Code::BadToken, "not valid yet"),
        (
            ed(json!({ "sub": "alice", "exp": now + 60, "aud": "else" })),
            Code::BadToken,
            "`aud` does not name",
        ),
    ];
    for (token, code, part) in cases {
        let refusal = keys.check(&token).expect_err(part);
        assert_eq!(refusal.code, code, "{}", refusal.reason);
        assert!(refusal.reason.contains(part), "{:?} without {part:?}", refusal.reason);
    }
    assert!(keys.check(&good).is_ok(), "and the good one still passes");
}

#[test]
fn clocks_may_differ_by_the_leeway() {
    let keys = all_keys();
    let now = get_current_timestamp();
    let claims = json!({ "sub": "alice", "exp": now - 2, "nbf": now + 2 });
    assert!(keys.check(&sign(Algorithm::EdDSA, Some("ed"), &ed25519(1), &claims)).is_ok());
}

#[test]
fn issuer_and_audience_are_demanded_when_set() {
    let set = [jwk(&ed25519(1), Algorithm::EdDSA, None)];
    let keys = keys(&set, false, |settings| {
        settings.issuers = vec!["us".to_owned(), "them".to_owned()];
        settings.audiences = vec!["chat".to_owned()];
    });
    let keys = keys.unwrap();
    let check = |more: Value| {
        let mut claims = alice();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys.check(&sign(Algorithm::EdDSA, None, &ed25519(1), &claims)).map_err(|refusal| refusal.reason)
    };
    assert!(check(json!({ "iss": "us", "aud": "chat" })).is_ok());
    assert!(check(json!({ "iss": "them", "aud": ["mail", "chat"] })).is_ok());
    assert!(check(json!({ "iss": "others", "aud": "chat" })).unwrap_err().contains("`iss`"));
    assert!(check(json!({ "iss": "us", "aud": "mail" })).unwrap_err().contains("`aud`"));
    assert!(check(json!({ "aud": "chat" })).unwrap_err().contains("`iss` is missing"));
    assert!(check(json!({ "iss": "us" })).unwrap_err().contains("`aud` is missing"));
}

#[test]
fn hs256_is_off_unless_asked_for() {
    let keys = keys(&[jwk(&ed25519(1), Algorithm::EdDSA, None)], false, |_| ()).unwrap();
    let token = sign(Algorithm::HS256, None, &EncodingKey::from_secret(SECRET), &alice());
    assert!(keys.check(&token).unwrap_err().reason.contains("HS256 is not accepted"));
}

#[test]
fn two_keys_of_a_kind_must_be_named() {
    let set = [jwk(&ed25519(1), Algorithm::EdDSA, Some("a")), jwk(&ed25519(2), Algorithm::EdDSA, Some("b"))];
    let keys = keys(&set, false, |_| ()).unwrap();
    let refusal = keys.check(&sign(Algorithm::EdDSA, None, &ed25519(1), &alice())).unwrap_err();
    assert!(refusal.reason.contains("several would do"));
    assert!(keys.check(&sign(Algorithm::EdDSA, Some("b"), &ed25519(2), &alice())).is_ok());
}

#[test]
fn key_sets_that_cannot_be_used_are_refused() {
    let short = EncodingKey::from_rsa_pem(RSA_SHORT).unwrap();
    let mut encryption = jwk(&ed25519(1), Algorithm::EdDSA, None);
    encryption["use"] = "enc".into();
    let mut other = jwk(&rsa(), Algorithm::RS256, None);
    other["alg"] = "RS512".into();
    let mut cut = jwk(&ed25519(1), Algorithm::EdDSA, None);
    cut["x"] = "AAAA".into();
    let useless = [
        jwk(&short, Algorithm::RS256, None),
        jwk(&EncodingKey::from_secret(SECRET), Algorithm::HS256, None),
        encryption,
        other,
        cut,
        json!({ "kty": "tea" }),
        json!(3),
    ];
    for key in &useless {
        let error = keys(std::slice::from_ref(key), false, |_| ()).expect_err(&key.to_string());
        assert!(matches!(error, AuthError::NoUsableKey { .. }), "{error}");
    }
    let mut with_one = useless.to_vec();
    with_one.push(jwk(&ed25519(1), Algorithm::EdDSA, None));
    assert_eq!(keys(&with_one, false, |_| ()).unwrap().len(), 1, "the others are left out");
    let twice =
        [jwk(&ed25519(1), Algorithm::EdDSA, Some("a")), jwk(&ed25519(2), Algorithm::EdDSA, Some("a"))];
    assert!(matches!(keys(&twice, false, |_| ()), Err(AuthError::Twice { .. })));
    let many = vec![json!({}); KEYS_MAX + 1];
    assert!(matches!(keys(&many, false, |_| ()), Err(AuthError::TooMany { .. })));
    let missing = keys(&[], false, |settings| settings.jwks_file = Some("/nowhere/keys.json".into()));
    assert!(missing.unwrap_err().to_string().contains("/nowhere/keys.json"));
}
