"""What ends soon is told by a running agent: once a day in the log, and as a metric."""

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID
from structlog.testing import capture_logs

from agent.api.expiring import Expiring
from agent.trust.certificates import CertificateAuthority, certificate_builder
from agent.trust.expiry import Kind
from tests.api.house import House, open_house
from tests.builders import NOW, changed

DAY = timedelta(days=1)
METRIC = "dc_compute_certificate_expiry_timestamp_seconds"


def watched(folder: Path, *, days: int = 90) -> tuple[House, Expiring]:
    """An agent whose certificate holds so many days from NOW."""
    house = open_house(folder)
    ca = CertificateAuthority("ours", now=NOW, days=500)
    (folder / "tls.crt").write_bytes(ca.server(["a.test"], now=NOW, days=days).certificate + ca.certificate)
    return house, Expiring(lambda: house.desk.host, folder / "tls.crt")


def test_a_certificate_is_told_thirty_days_before_its_end_once_a_day(tmp_path: Path) -> None:
    house, expiring = watched(tmp_path, days=31)

    with capture_logs() as logged:
        early = expiring.warn()
        house.clock.pass_by(DAY)
        first, second = expiring.warn(), expiring.warn()
        house.clock.pass_by(DAY)
        next_day = expiring.warn()

    assert early == ()
    assert [one.kind for one in first] == [Kind.CERTIFICATE]
    assert (second, next_day) == ((), first)
    lines = [one for one in logged if one["event"] == "expiry.near"]
    assert [(one["kind"], one["whose"], one["days"]) for one in lines] == [
        ("certificate", "CN=a.test", 30),
        ("certificate", "CN=a.test", 29),
    ]


def test_a_roster_and_a_certificate_that_were_read_anew_are_looked_at(tmp_path: Path) -> None:
    house, expiring = watched(tmp_path)
    before = expiring.warn()
    house.clock.pass_by(DAY)
    o1 = house.world.orchestrator.keyid
    house.desk.begun_with = replace(
        house.host, roster=changed(house.host.roster, o1, valid_until=NOW + 5 * DAY)
    )
    (tmp_path / "tls.crt").unlink()

    after = expiring.warn()

    assert before == ()
    assert [(one.kind, one.at) for one in after] == [(Kind.KEY, NOW + 5 * DAY)]


def test_the_page_of_metrics_says_when_each_certificate_ends(tmp_path: Path) -> None:
    house, expiring = watched(tmp_path, days=90)
    house.desk.metrics.also(expiring)

    page = house.operator.get("/metrics").text

    ends = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith(METRIC)
    }
    assert ends == {
        f'{METRIC}{{kind="certificate",name="CN=a.test"}}': (NOW + 90 * DAY).timestamp(),
        f'{METRIC}{{kind="certificate chain",name="CN=ours"}}': (NOW + 500 * DAY).timestamp(),
    }


def test_a_certificate_with_a_name_that_nobody_reads_takes_no_metric_away(tmp_path: Path) -> None:
    house, expiring = watched(tmp_path)
    o1 = house.world.orchestrator.keyid
    strange = with_names(bytes.fromhex("3004a3023000")).decode("ascii")  # an X.400 address: TLS does not mind
    house.desk.begun_with = replace(house.host, roster=changed(house.host.roster, o1, tls_ca=strange))
    (tmp_path / "tls.crt").write_text(strange)
    house.desk.metrics.also(expiring)

    assert expiring.warn() == ()
    assert METRIC.encode() in bytes(house.desk.metrics.page().body)


def with_names(names: bytes) -> bytes:
    """A certificate with this as its alternative names, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "strange")])
    builder = certificate_builder(name, name, key.public_key(), NOW, 90)
    told = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names)
    signed = builder.add_extension(told, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_a_service_warns_at_its_start_and_ends_its_watch(tmp_path: Path) -> None:
    _, expiring = watched(tmp_path, days=3)
    before = threading.active_count()

    with capture_logs() as logged, expiring.warning():
        pass

    assert [one["event"] for one in logged] == ["expiry.near"]
    assert threading.active_count() == before
