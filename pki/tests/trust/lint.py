"""Runs pkilint over many documents in one process: its start takes longer than its work.

Standard input: lines of WHAT, NAME and PATH (DER) with tabs between them; WHAT is "certificate", "crl", or "issued", which
has the issuer's path as well. Standard output: what pkilint finds, above NOTICE, as lines of NAME, severity, code, place
and message; then "linted" and the number of documents. The validators are those of the programs lint_pkix_cert, lint_crl
(profile PKIX) and lint_pkix_signer_signee_cert_chain.
"""

import sys

from pkilint import loader, pkix
from pkilint.bin import lint_pkix_signer_signee_cert_chain as chain
from pkilint.pkix import certificate, crl, extension, name
from pkilint.validation import ValidationFindingSeverity

CERTIFICATE = certificate.create_pkix_certificate_validator_container(
    certificate.create_decoding_validators(
        name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
    ),
    [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
        certificate.create_spki_validator_container([]),
    ],
)
CRL = crl.create_pkix_crl_validator_container(
    [
        pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
        pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
    ],
    [
        crl.create_issuer_validator_container([]),
        crl.create_validity_validator_container([]),
        crl.create_extensions_validator_container([]),
    ],
)


def load(kind, path, *more):
    with open(path, "rb") as file:
        return kind().load_der_file(file, path, *more)


def results(what, path, issuer):
    if what == "certificate":
        document = load(loader.RFC5280CertificateDocumentLoader, path)
        return CERTIFICATE.validate(document.root)
    if what == "crl":
        document = load(loader.RFC5280CertificateListDocumentLoader, path)
        return CRL.validate(document.root)
    documents = {}
    for role, source in [("issuer", issuer[0]), ("subject", path)]:
        with open(source, "rb") as file:
            documents[role] = loader.RFC5280CertificateDocumentLoader().load_der_document(
                file.read(), source, role, documents
            )
    decoding = chain.create_decoder_validation_container()
    return (
        decoding.validate(documents["issuer"].root)
        + decoding.validate(documents["subject"].root)
        + chain.create_issuer_validation_container().validate(documents["issuer"].root)
        + chain.create_subject_validation_container().validate(documents["subject"].root)
    )


def main():
    count = 0
    for line in sys.stdin:
        what, title, path, *issuer = line.rstrip("\n").split("\t")
        count += 1
        try:
            found = results(what, path, issuer)
        except ValueError as error:
            print(title, "FATAL", "unreadable", path, " ".join(str(error).split()), sep="\t")
            continue
        for result in found:
            for finding in result.finding_descriptions:
                if finding.finding.severity < ValidationFindingSeverity.NOTICE:
                    message = " ".join((finding.message or "").split())
                    print(title, finding.finding.severity.name, finding.finding.code, result.node.path, message, sep="\t")
    print("linted", count, sep="\t")


main()
