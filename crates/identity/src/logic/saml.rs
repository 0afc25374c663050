//! SAML 2.0 as an identity provider writes it: what this cloud says of its users to another (Keystone to Keystone), and what
//! it says of itself. Elements, attributes and their order are Keystone's (`keystone/federation/idp.py`).
//!
//! XML is written here and never read. What gets signed is written in its canonical form (Exclusive XML Canonicalization 1.0)
//! from the beginning, so that nothing has to bring it there: no empty-element tags, attributes in order, a namespace
//! declared by the element that first uses its prefix, and only what the form escapes is escaped. Signed, it is sent in ASCII.

use base::{Error, Result, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// SAML assertions (saml-core-2.0-os, section 1.1).
const SAML: &str = "urn:oasis:names:tc:SAML:2.0:assertion";
/// SAML protocol (saml-core-2.0-os, section 1.1).
const SAMLP: &str = "urn:oasis:names:tc:SAML:2.0:protocol";
/// SAML metadata (saml-metadata-2.0-os, section 2.1).
const MD: &str = "urn:oasis:names:tc:SAML:2.0:metadata";
/// Enhanced client or proxy (saml-profiles-2.0-os, section 4.2).
const ECP: &str = "urn:oasis:names:tc:SAML:2.0:profiles:SSO:ecp";
/// SOAP 1.1.
const SOAP: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// XML signatures.
const DS: &str = "http://www.w3.org/2000/09/xmldsig#";
/// Exclusive XML Canonicalization.
const EXC: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
/// That names of attributes are URIs (saml-core-2.0-os, section 8.2.2), as pysaml2 writes it for Keystone: who maps attributes
/// may look for names of this format only.
const URI_NAMES: &str = "urn:oasis:names:tc:SAML:2.0:attrname-format:uri";
const XS: &str = "http://www.w3.org/2001/XMLSchema";
const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// What the answers of Keystone begin with too.
const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// What is said of a user.
#[derive(Debug, Clone)]
pub struct Statement<'a> {
    /// Who says it (`idp_entity_id`).
    pub issuer: &'a str,
    /// To whom (`sp_url`).
    pub recipient: &'a str,
    /// Name of the user.
    pub user: &'a str,
    /// Name of the user's domain.
    pub user_domain: &'a str,
    /// Names of the roles in the project.
    pub roles: Vec<&'a str>,
    /// Name of the project.
    pub project: &'a str,
    /// Name of the project's domain.
    pub project_domain: &'a str,
    /// Names of the user's groups and of their domains.
    pub groups: Vec<(String, String)>,
}

/// Ids and times of one answer.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Of the response: an `xs:ID`, which begins with no digit.
    pub response: String,
    /// Of the assertion.
    pub assertion: String,
    /// Of the session.
    pub session: String,
    /// Now.
    pub now: Timestamp,
    /// When what is said ends.
    pub until: Timestamp,
}

/// What makes signatures: a certificate (DER), and what signs by its key (RSA with SHA-256, PKCS #1 v1.5).
pub struct Signer<'a> {
    /// The certificate.
    pub certificate: &'a [u8],
    /// Signs these bytes.
    pub sign: &'a dyn Fn(&[u8]) -> Result<Vec<u8>>,
}

impl std::fmt::Debug for Signer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

/// Whether XML 1.0 has a place for a character (section 2.2).
fn fits(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// A document that is being written.
#[derive(Debug, Default)]
struct Writer(String);

impl Writer {
    /// An opening tag; attributes and declarations in canonical order are the caller's business, their values are escaped.
    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) -> Result<()> {
        self.0.push('<');
        self.0.push_str(name);
        for (key, value) in attributes {
            refuse_strange(value, key)?;
            self.0.push(' ');
            self.0.push_str(key);
            self.0.push_str("=\"");
            for c in value.chars() {
                match c {
                    '&' => self.0.push_str("&amp;"),
                    '<' => self.0.push_str("&lt;"),
                    '"' => self.0.push_str("&quot;"),
                    '\t' => self.0.push_str("&#x9;"),
                    '\n' => self.0.push_str("&#xA;"),
                    '\r' => self.0.push_str("&#xD;"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        self.0.push('>');
        Ok(())
    }

    fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// Text, escaped; `what` is named where XML cannot carry it.
    fn text(&mut self, text: &str, what: &str) -> Result<()> {
        refuse_strange(text, what)?;
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '\r' => self.0.push_str("&#xD;"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }

    /// An element with nothing but text in it.
    fn leaf(&mut self, name: &str, attributes: &[(&str, &str)], text: &str, what: &str) -> Result<()> {
        self.open(name, attributes)?;
        self.text(text, what)?;
        self.close(name);
        Ok(())
    }
}

fn refuse_strange(text: &str, what: &str) -> Result<()> {
    if text.chars().all(fits) {
        return Ok(());
    }
    Err(Error::bad_request(format!(
        "The {what} has a character that XML cannot carry, so that no assertion can be made of it."
    )))
}

fn issuer(out: &mut Writer, name: &str, declared: bool) -> Result<()> {
    const FORMAT: (&str, &str) = ("Format", "urn:oasis:names:tc:SAML:2.0:nameid-format:entity");
    let attributes: &[(&str, &str)] = if declared { &[FORMAT] } else { &[("xmlns:saml", SAML), FORMAT] };
    out.leaf("saml:Issuer", attributes, name, "idp_entity_id")
}

/// The assertion without its signature, cut where that belongs: behind the issuer (saml-core-2.0-os, section 2.3.3).
fn assertion(what: &Statement<'_>, frame: &Frame) -> Result<(String, String)> {
    let (now, until) = (frame.now.iso_seconds(), frame.until.iso_micros());
    let mut out = Writer::default();
    out.open(
        "saml:Assertion",
        &[("xmlns:saml", SAML), ("ID", &frame.assertion), ("IssueInstant", &now), ("Version", "2.0")],
    )?;
    issuer(&mut out, what.issuer, true)?;
    let head = std::mem::take(&mut out.0);
    out.open("saml:Subject", &[])?;
    out.leaf("saml:NameID", &[], what.user, "user's name")?;
    out.open("saml:SubjectConfirmation", &[("Method", "urn:oasis:names:tc:SAML:2.0:cm:bearer")])?;
    let data = [("NotOnOrAfter", until.as_str()), ("Recipient", what.recipient)];
    out.leaf("saml:SubjectConfirmationData", &data, "", "")?;
    out.close("saml:SubjectConfirmation");
    out.close("saml:Subject");
    out.open(
        "saml:AuthnStatement",
        &[("AuthnInstant", &now), ("SessionIndex", &frame.session), ("SessionNotOnOrAfter", &until)],
    )?;
    out.open("saml:AuthnContext", &[])?;
    let class = "urn:oasis:names:tc:SAML:2.0:ac:classes:Password";
    out.leaf("saml:AuthnContextClassRef", &[], class, "")?;
    out.leaf("saml:AuthenticatingAuthority", &[], what.issuer, "idp_entity_id")?;
    out.close("saml:AuthnContext");
    out.close("saml:AuthnStatement");
    out.open("saml:AttributeStatement", &[])?;
    // As Keystone writes them, in its order; a text that a mapping reads as JSON begins so.
    let named = |(name, domain): &(String, String)| {
        let (name, domain) = (json!(name), json!(domain));
        format!("JSON:{{\"name\": {name}, \"domain\": {{\"name\": {domain}}}}}")
    };
    let groups: Vec<String> = what.groups.iter().map(named).collect();
    for (name, values, of) in [
        ("openstack_user", vec![what.user], "user's name"),
        ("openstack_roles", what.roles.clone(), "role's name"),
        ("openstack_project", vec![what.project], "project's name"),
        ("openstack_project_domain", vec![what.project_domain], "name of the project's domain"),
        ("openstack_user_domain", vec![what.user_domain], "name of the user's domain"),
        ("openstack_groups", groups.iter().map(String::as_str).collect(), "name of a group"),
    ] {
        if values.is_empty() {
            continue;
        }
        out.open("saml:Attribute", &[("Name", name), ("NameFormat", URI_NAMES)])?;
        for value in values {
            let typed = [("xmlns:xs", XS), ("xmlns:xsi", XSI), ("xsi:type", "xs:string")];
            out.leaf("saml:AttributeValue", &typed, value, of)?;
        }
        out.close("saml:Attribute");
    }
    out.close("saml:AttributeStatement");
    out.close("saml:Assertion");
    Ok((head, out.0))
}

/// The signature over an assertion (XML Signature 1.1, section 4): enveloped, so that the digest is that of the
/// assertion without it.
fn signature(id: &str, bare: &str, signer: &Signer<'_>) -> Result<String> {
    let mut info = Writer::default();
    info.open("ds:SignedInfo", &[("xmlns:ds", DS)])?;
    info.leaf("ds:CanonicalizationMethod", &[("Algorithm", EXC)], "", "")?;
    let rsa = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256";
    info.leaf("ds:SignatureMethod", &[("Algorithm", rsa)], "", "")?;
    info.open("ds:Reference", &[("URI", &format!("#{id}"))])?;
    info.open("ds:Transforms", &[])?;
    let enveloped = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
    info.leaf("ds:Transform", &[("Algorithm", enveloped)], "", "")?;
    info.open("ds:Transform", &[("Algorithm", EXC)])?;
    // `xs` is used in the value of an attribute only, which the exclusive form does not count as a use.
    info.leaf("ec:InclusiveNamespaces", &[("xmlns:ec", EXC), ("PrefixList", "xs")], "", "")?;
    info.close("ds:Transform");
    info.close("ds:Transforms");
    info.leaf("ds:DigestMethod", &[("Algorithm", "http://www.w3.org/2001/04/xmlenc#sha256")], "", "")?;
    info.leaf("ds:DigestValue", &[], &STANDARD.encode(Sha256::digest(bare)), "")?;
    info.close("ds:Reference");
    info.close("ds:SignedInfo");
    let signed = (signer.sign)(info.0.as_bytes())?;
    let mut out = Writer::default();
    out.open("ds:Signature", &[("xmlns:ds", DS)])?;
    out.0.push_str(&info.0);
    out.leaf("ds:SignatureValue", &[], &STANDARD.encode(signed), "")?;
    key_info(&mut out, signer.certificate, false)?;
    out.close("ds:Signature");
    Ok(out.0)
}

fn key_info(out: &mut Writer, certificate: &[u8], declares: bool) -> Result<()> {
    out.open("ds:KeyInfo", if declares { &[("xmlns:ds", DS)] } else { &[] })?;
    out.open("ds:X509Data", &[])?;
    out.leaf("ds:X509Certificate", &[], &STANDARD.encode(certificate), "")?;
    out.close("ds:X509Data");
    out.close("ds:KeyInfo");
    Ok(())
}

/// The response (saml-core-2.0-os, section 3.3.3) with the signed assertion in it.
fn answer(what: &Statement<'_>, frame: &Frame, signer: &Signer<'_>) -> Result<String> {
    let (head, rest) = assertion(what, frame)?;
    let signed = signature(&frame.assertion, &format!("{head}{rest}"), signer)?;
    let mut out = Writer::default();
    let now = frame.now.iso_seconds();
    out.open(
        "samlp:Response",
        &[
            ("xmlns:samlp", SAMLP),
            ("Destination", what.recipient),
            ("ID", &frame.response),
            ("IssueInstant", &now),
            ("Version", "2.0"),
        ],
    )?;
    issuer(&mut out, what.issuer, false)?;
    out.open("samlp:Status", &[])?;
    let success = [("Value", "urn:oasis:names:tc:SAML:2.0:status:Success")];
    out.leaf("samlp:StatusCode", &success, "", "")?;
    out.close("samlp:Status");
    out.0.push_str(&head);
    out.0.push_str(&signed);
    out.0.push_str(&rest);
    out.close("samlp:Response");
    Ok(out.0)
}

/// The same document in ASCII. Clients carry it on as a text, which they read in a charset that they guess and send in
/// another (keystoneauth with urllib3 2: ISO 8859-1, then UTF-8), and of a name that is not ASCII another signature would be
/// left. In the canonical form a reference is the character itself (Canonical XML 1.0, section 1.1).
fn ascii(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        match c {
            '\0'..='\x7f' => out.push(c),
            other => out.push_str(&format!("&#x{:X};", u32::from(other))),
        }
    }
    out
}

/// The response as a document.
///
/// # Errors
/// `BadRequest` where a name has a character that XML cannot carry; what the signer says.
pub fn response(what: &Statement<'_>, frame: &Frame, signer: &Signer<'_>) -> Result<String> {
    Ok(ascii(&format!("{DECLARATION}{}", answer(what, frame, signer)?)))
}

/// The response in an envelope (saml-profiles-2.0-os, section 4.2.4.5), for who carries it to the service provider.
///
/// # Errors
/// As [`response`].
pub fn envelope(
    what: &Statement<'_>,
    frame: &Frame,
    relay_state: &str,
    signer: &Signer<'_>,
) -> Result<String> {
    let mut out = Writer(DECLARATION.to_owned());
    out.open("soap:Envelope", &[("xmlns:soap", SOAP)])?;
    out.open("soap:Header", &[])?;
    let next = "http://schemas.xmlsoap.org/soap/actor/next";
    let to = [("xmlns:ecp", ECP), ("soap:actor", next), ("soap:mustUnderstand", "1")];
    out.leaf("ecp:RelayState", &to, relay_state, "relay_state_prefix of the service provider")?;
    out.close("soap:Header");
    out.open("soap:Body", &[])?;
    out.0.push_str(&answer(what, frame, signer)?);
    out.close("soap:Body");
    out.close("soap:Envelope");
    Ok(ascii(&out.0))
}

/// What an identity provider says of itself.
#[derive(Debug, Clone, Default)]
pub struct About<'a> {
    /// Its name (`idp_entity_id`).
    pub entity_id: &'a str,
    /// Where it takes requests (`idp_sso_endpoint`).
    pub sso_endpoint: &'a str,
    /// Language of what people read.
    pub lang: &'a str,
    /// Name, name for display and URL of the organization.
    pub organization: Option<[&'a str; 3]>,
    /// Company, given name, surname, email, telephone of who can be asked, and the kind of that person.
    pub contact: Option<[&'a str; 6]>,
}

/// Metadata (saml-metadata-2.0-os, section 2.4.3), as `keystone-manage saml_idp_metadata` writes it.
///
/// # Errors
/// `BadRequest` where a text has a character that XML cannot carry.
pub fn metadata(about: &About<'_>, certificate: &[u8]) -> Result<String> {
    let mut out = Writer(DECLARATION.to_owned());
    out.open("md:EntityDescriptor", &[("xmlns:md", MD), ("entityID", about.entity_id)])?;
    out.open("md:IDPSSODescriptor", &[("protocolSupportEnumeration", SAMLP)])?;
    out.open("md:KeyDescriptor", &[("use", "signing")])?;
    key_info(&mut out, certificate, true)?;
    out.close("md:KeyDescriptor");
    if let Some(texts) = &about.organization {
        out.open("md:Organization", &[])?;
        for (name, text) in
            ["OrganizationName", "OrganizationDisplayName", "OrganizationURL"].iter().zip(texts)
        {
            out.leaf(&format!("md:{name}"), &[("xml:lang", about.lang)], text, name)?;
        }
        out.close("md:Organization");
    }
    if let Some([company, given, surname, email, telephone, kind]) = &about.contact {
        out.open("md:ContactPerson", &[("contactType", kind)])?;
        for (name, text) in [
            ("Company", company),
            ("GivenName", given),
            ("SurName", surname),
            ("EmailAddress", email),
            ("TelephoneNumber", telephone),
        ] {
            out.leaf(&format!("md:{name}"), &[], text, name)?;
        }
        out.close("md:ContactPerson");
    }
    let transient = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient";
    out.leaf("md:NameIDFormat", &[], transient, "")?;
    let uri = "urn:oasis:names:tc:SAML:2.0:bindings:URI";
    out.leaf("md:SingleSignOnService", &[("Binding", uri), ("Location", about.sso_endpoint)], "", "")?;
    out.close("md:IDPSSODescriptor");
    out.close("md:EntityDescriptor");
    Ok(ascii(&out.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// An element as anybody who knows XML reads it.
    #[derive(Debug, Default)]
    struct Node {
        name: String,
        attributes: BTreeMap<String, String>,
        text: String,
        children: Vec<Node>,
    }

    /// References to characters beyond ASCII as these characters: the canonical form.
    fn canonical(xml: &str) -> String {
        let mut parts = xml.split("&#x");
        let mut out = parts.next().unwrap().to_owned();
        for part in parts {
            let (code, rest) = part.split_once(';').unwrap();
            match u32::from_str_radix(code, 16).unwrap() {
                ..0x80 => out.push_str(&format!("&#x{part}")),
                code => out.extend(char::from_u32(code).into_iter().chain(rest.chars())),
            }
        }
        out
    }

    fn plain(text: &str) -> String {
        let codes = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x9;", "\t"), ("&#xA;", "\n")];
        let text = codes.iter().fold(text.to_owned(), |text, (code, is)| text.replace(code, is));
        text.replace("&#xD;", "\r").replace("&amp;", "&")
    }

    /// Reads an element; what is behind it.
    fn read(xml: &str) -> (Node, &str) {
        // A `>` may stand in a value.
        let mut quoted = false;
        let end = xml.char_indices().find(|(_, c)| {
            quoted ^= *c == '"';
            *c == '>' && !quoted
        });
        let end = end.unwrap().0;
        let (tag, mut rest) = (&xml[1..end], &xml[end + 1..]);
        let (name, mut values) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut node = Node { name: name.to_owned(), ..Node::default() };
        while let Some((key, value)) = values.split_once("=\"") {
            let (value, more) = value.split_once('"').unwrap();
            assert_eq!(node.attributes.insert(key.trim().to_owned(), plain(value)), None);
            values = more;
        }
        loop {
            let next = rest.find('<').unwrap();
            node.text.push_str(&plain(&rest[..next]));
            rest = &rest[next..];
            if let Some(closed) = rest.strip_prefix(&format!("</{name}>")) {
                return (node, closed);
            }
            let (child, behind) = read(rest);
            node.children.push(child);
            rest = behind;
        }
    }

    impl Node {
        fn at(&self, path: &str) -> &Node {
            path.split('/').fold(self, |node, name| node.children.iter().find(|c| c.name == name).unwrap())
        }

        fn names(&self) -> Vec<&str> {
            self.children.iter().map(|c| c.name.as_str()).collect()
        }
    }

    fn document(xml: &str) -> Node {
        // Line ends of any kind would be read as others.
        assert!(xml.is_ascii() && !xml.contains('\r'));
        let xml = canonical(xml);
        let (node, rest) = read(xml.strip_prefix(DECLARATION).unwrap());
        assert_eq!(rest, "");
        node
    }

    fn frame() -> Frame {
        let now = Timestamp::from_secs(1_767_225_600);
        let id = |n: u8| format!("_{n}");
        Frame { response: id(1), assertion: id(2), session: id(3), now, until: now.plus_secs(3600) }
    }

    fn signer() -> Signer<'static> {
        Signer { certificate: b"certificate", sign: &|bytes| Ok(Sha256::digest(bytes).to_vec()) }
    }

    fn about<'a>(name: &'a str, url: &'a str) -> Statement<'a> {
        Statement {
            issuer: url,
            recipient: url,
            user: name,
            user_domain: name,
            roles: vec!["member", name],
            project: name,
            project_domain: "Default",
            groups: vec![(name.to_owned(), "Default".to_owned())],
        }
    }

    #[test]
    fn elements_are_keystones_in_its_order() {
        let read = document(&response(&about("demo", "https://b.test/sp"), &frame(), &signer()).unwrap());
        assert_eq!(read.names(), ["saml:Issuer", "samlp:Status", "saml:Assertion"]);
        assert_eq!(read.attributes["Destination"], "https://b.test/sp");
        let said = read.at("saml:Assertion");
        assert_eq!(
            said.names(),
            ["saml:Issuer", "ds:Signature", "saml:Subject", "saml:AuthnStatement", "saml:AttributeStatement"]
        );
        assert_eq!(said.at("saml:Subject/saml:NameID").text, "demo");
        let data = &said.at("saml:Subject/saml:SubjectConfirmation/saml:SubjectConfirmationData").attributes;
        assert_eq!(data["NotOnOrAfter"], "2026-01-01T01:00:00.000000Z");
        assert_eq!(data["Recipient"], "https://b.test/sp");
        let names = said.at("saml:AttributeStatement").children.iter().map(|a| a.attributes["Name"].as_str());
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                "openstack_user",
                "openstack_roles",
                "openstack_project",
                "openstack_project_domain",
                "openstack_user_domain",
                "openstack_groups"
            ]
        );
        let groups = said.at("saml:AttributeStatement").children.last().unwrap();
        assert_eq!(groups.children[0].text, "JSON:{\"name\": \"demo\", \"domain\": {\"name\": \"Default\"}}");
        // Who is in no group is told so by silence.
        let alone = Statement { groups: Vec::new(), ..about("demo", "https://b.test/sp") };
        let read = document(&response(&alone, &frame(), &signer()).unwrap());
        assert_eq!(read.at("saml:Assertion/saml:AttributeStatement").children.len(), 5);
    }

    #[test]
    fn metadata_tells_all_of_an_organization_or_nothing() {
        let mut told = About {
            entity_id: "https://a.test/idp",
            sso_endpoint: "https://a.test/sso?a&b",
            lang: "de",
            organization: Some(["A & B", "A <B>", "https://a.test"]),
            contact: Some(["A", "Ada", "Lovelace", "ada@a.test", "+49", "technical"]),
        };
        let read = document(&metadata(&told, b"certificate").unwrap());
        assert_eq!(read.attributes["entityID"], "https://a.test/idp");
        let idp = read.at("md:IDPSSODescriptor");
        let places = &idp.at("md:SingleSignOnService").attributes;
        assert_eq!(places["Location"], "https://a.test/sso?a&b");
        assert_eq!(idp.at("md:Organization/md:OrganizationDisplayName").text, "A <B>");
        assert_eq!(idp.at("md:ContactPerson/md:SurName").text, "Lovelace");
        assert_eq!(
            idp.at("md:KeyDescriptor/ds:KeyInfo/ds:X509Data/ds:X509Certificate").text,
            "Y2VydGlmaWNhdGU="
        );
        (told.organization, told.contact) = (None, None);
        let read = document(&metadata(&told, b"certificate").unwrap());
        assert_eq!(
            read.at("md:IDPSSODescriptor").names(),
            ["md:KeyDescriptor", "md:NameIDFormat", "md:SingleSignOnService"]
        );
    }

    #[test]
    fn what_xml_cannot_carry_is_refused_by_name() {
        for (c, carried) in [
            ('\0', false),
            ('\u{1}', false),
            ('\u{1f}', false),
            ('\u{7f}', true),
            ('\u{fffd}', true),
            ('\u{fffe}', false),
            ('\u{ffff}', false),
            ('\u{10000}', true),
            ('\u{10ffff}', true),
        ] {
            let name = format!("a{c}b");
            let made = response(&about(&name, "https://b.test/sp"), &frame(), &signer());
            assert_eq!(made.is_ok(), carried, "{c:?}");
            if let Err(error) = made {
                assert_eq!(error.kind(), base::Kind::BadRequest);
                assert!(error.public().starts_with("The user's name has a character"), "{error}");
            }
        }
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof!["\\PC{0,20}", "[<>&\"' \t\r\n\\]a-c;#x;]{0,20}", any::<String>()]
    }

    proptest! {
        /// Whatever a name holds, it is read as it is, in its place, and nothing is read that was not said.
        #[test]
        fn names_are_text_and_nothing_else(name in any_name(), prefix in any_name(), url in "[!-~]{1,40}") {
            let what = about(&name, &url);
            let carried = name.chars().all(fits);
            let made = response(&what, &frame(), &signer());
            prop_assert_eq!(made.is_ok(), carried);
            let wrapped = envelope(&what, &frame(), &prefix, &signer());
            prop_assert_eq!(wrapped.is_ok(), carried && prefix.chars().all(fits));
            let Ok(xml) = made else { return Ok(()) };
            let read = document(&xml);
            prop_assert_eq!(&read.attributes["Destination"], &url);
            prop_assert_eq!(read.children.len(), 3);
            let said = read.at("saml:Assertion");
            prop_assert_eq!(said.children.len(), 5);
            prop_assert_eq!(&said.at("saml:Subject/saml:NameID").text, &name);
            let values: Vec<Vec<&str>> = said.at("saml:AttributeStatement").children.iter()
                .map(|a| a.children.iter().map(|v| v.text.as_str()).collect()).collect();
            prop_assert_eq!(&values[..5], [
                vec![name.as_str()], vec!["member", &name], vec![&name], vec!["Default"], vec![&name],
            ]);
            let group: serde_json::Value = serde_json::from_str(values[5][0].strip_prefix("JSON:").unwrap()).unwrap();
            prop_assert_eq!(&group["name"], &json!(name));

            // The digest is that of the assertion's canonical form, without its signature.
            let xml = canonical(&xml);
            let (from, to) = (xml.find("<saml:Assertion").unwrap(), xml.find("</samlp:Response>").unwrap());
            let whole = &xml[from..to];
            let (cut, behind) = (whole.find("<ds:Signature ").unwrap(), whole.find("</ds:Signature>").unwrap());
            let bare = format!("{}{}", &whole[..cut], &whole[behind + "</ds:Signature>".len()..]);
            let info = said.at("ds:Signature/ds:SignedInfo");
            let digest = &info.at("ds:Reference/ds:DigestValue").text;
            prop_assert_eq!(digest, &STANDARD.encode(Sha256::digest(&bare)));
            prop_assert_eq!(&info.at("ds:Reference").attributes["URI"], &format!("#{}", said.attributes["ID"]));

            if let Ok(wrapped) = wrapped {
                let read = document(&wrapped);
                prop_assert_eq!(&read.at("soap:Header/ecp:RelayState").text, &prefix);
                prop_assert_eq!(&read.at("soap:Body/samlp:Response/saml:Assertion/saml:Subject/saml:NameID").text, &name);
            }
        }
    }
}
