"""Crawls as warcio writes them: conversions, and pages as their HTTP headers say."""

import gzip
import io

import pytest

from tests.data.readers.formats import source, train

warcio = pytest.importorskip("warcio")
PAGE = "<p>héllo 中文</p>"


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def crawl(request, tmp_path):
    """A file of all kinds of records."""
    path = tmp_path / "a.warc"
    headers = warcio.statusandheaders.StatusAndHeaders
    with open(path, "wb") as file:
        writer = warcio.warcwriter.WARCWriter(file, gzip=request.param)

        def response(status: str, body: bytes, **fields: str):
            found = headers(status, [(name.replace("_", "-"), value) for name, value in fields.items()], "HTTP/1.1")
            record = writer.create_warc_record("http://a/page", "response", io.BytesIO(body), http_headers=found)
            writer.write_record(record)

        writer.write_record(writer.create_warcinfo_record("a", {"software": "warcio"}))
        text = io.BytesIO("Größe\n\n中文".encode())
        writer.write_record(writer.create_warc_record("http://a/1", "conversion", text, warc_content_type="text/plain"))
        request_headers = headers("GET / HTTP/1.1", [], is_http_request=True)
        writer.write_record(writer.create_warc_record("http://a/2", "request", http_headers=request_headers))
        response("200 OK", PAGE.encode(), Content_Type="text/html")
        response("200 OK", "中文".encode("gb2312"), Content_Type="text/html; charset=GB2312")
        response("200 OK", gzip.compress(PAGE.encode()), Content_Type="text/html", Content_Encoding="gzip")
        response("200 OK", b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n", Transfer_Encoding="chunked")
        response("200 OK", b"\x89PNG", Content_Type="image/png")
        response("404 Not Found", b"gone", Content_Type="text/html")
    return path if not request.param else path.rename(tmp_path / "a.warc.gz")


def test_texts_and_pages(crawl):
    assert train(source("warc", crawl)) == ["Größe\n\n中文", PAGE, "中文", PAGE, "hello world"]


def test_failures_and_pictures_are_counted(crawl):
    from data import sources

    reader = sources.reader(source("warc", crawl), "unused")
    assert len(list(reader.documents("train"))) == 5
    assert reader.counts == {"no_text": 2}


def test_address_and_type_are_columns(crawl):
    found = [record.fields for record in train(source("warc", crawl), columns=("url", "type"))]
    assert found[:2] == [
        {"url": "http://a/1", "type": "text/plain"},
        {"url": "http://a/page", "type": "text/html"},
    ]


def test_texts_are_those_that_warcio_reads(crawl):
    with open(crawl, "rb") as file:
        wanted = ("conversion", "response")
        found = [r.content_stream().read() for r in warcio.ArchiveIterator(file) if r.rec_type in wanted]
    documents = [text.encode("gb2312" if text == "中文" else "utf-8") for text in train(source("warc", crawl))]
    assert documents == [content for content in found if content not in (b"\x89PNG", b"gone")]
