# mqtool itself, for machines without Python. Its context is the root of the repository.
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE}
# Without an index: PIP_OPTIONS="--no-index --find-links wheels", with wheels/ in the repository's root.
ARG PIP_OPTIONS=
COPY . /src
RUN python3 -m venv /opt/mqtool \
    && /opt/mqtool/bin/pip install --no-cache-dir --disable-pip-version-check $PIP_OPTIONS --constraint /src/constraints.txt /src \
    && useradd --create-home mqtool \
    && rm -r /src
ENV PATH=/opt/mqtool/bin:$PATH HOME=/home/mqtool
USER mqtool
WORKDIR /home/mqtool
ENTRYPOINT ["mqtool"]
