"""A server whose state lies on a real S3 server answers as one whose state lies on a disk."""

from rich.console import Console

from annotate.run.pipeline import run
from annotate.run.settings import Settings
from services.settings import Settings as ServiceSettings
from tests.services.running import Server
from tests.stores import upload


def test_colons_of_urls_separate_nothing():
    settings = ServiceSettings.from_environment({"SFT_GO_STATE": "s3://b/x:name=s3://b/y:/a/b"})
    assert settings.state == ("s3://b/x", "name=s3://b/y", "/a/b")


def test_the_same_scores(s3, tmp_path):
    settings = Settings(data="sample", groupers=("tfidf", "frequency"), out=tmp_path / "x", limit=20, engine="local")
    run(settings, Console(quiet=True))
    url = upload(tmp_path / "x", f"{s3}/sample")
    asked = {"inputs": ["The heart pumps blood."], "grouper": "frequency"}
    answers = []
    for number, state in enumerate((str(tmp_path / "x"), f"name={url}")):
        with Server(tmp_path / f"log{number}", "--state", state) as server:
            server.wait()
            with server.client() as client:
                response = client.post("/v1/score", json=asked)
            assert response.status_code == 200, response.text
            answers.append(response.json()["results"])
    assert answers[0] == answers[1]
    assert len({token["score"] for token in answers[0][0]["tokens"]}) > 3
