# mqtool itself, and its embedded broker. The context is the root of the repository:
#
#   docker build -f mqtool/broker/image/tools.Dockerfile --target mqtool -t mqtool .          the command line
#   docker build -f mqtool/broker/image/tools.Dockerfile --target broker -t mqtool-broker .   a broker for tests
#   docker run --rm -p 127.0.0.1:5672:5672 -p 127.0.0.1:15672:15672 mqtool-broker [more options of mqtool broker serve]
#
# Without an index: --build-arg PIP_OPTIONS="--no-index --find-links /src/wheels", with wheels/ in the root.
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE} AS build
ARG PIP_OPTIONS=
COPY . /src
# pip checks the hash of each library, and of what builds mqtool.
RUN python3 -m venv /opt/mqtool \
    && /opt/mqtool/bin/pip install --no-cache-dir --disable-pip-version-check $PIP_OPTIONS \
        --require-hashes --only-binary :all: --requirement /src/.ci/requirements/image.txt \
    && /opt/mqtool/bin/pip install --no-cache-dir --disable-pip-version-check \
        --no-index --no-build-isolation --no-deps /src \
    && /opt/mqtool/bin/pip uninstall --quiet --yes hatchling pathspec pluggy trove-classifiers pip setuptools

FROM ${PYTHON_IMAGE} AS mqtool
COPY --from=build /opt/mqtool /opt/mqtool
RUN useradd --create-home mqtool
ENV PATH=/opt/mqtool/bin:$PATH HOME=/home/mqtool
USER mqtool
WORKDIR /home/mqtool
ENTRYPOINT ["mqtool"]

FROM mqtool AS broker
EXPOSE 5672 15672
# Any answer will do: it says that the broker listens and has time for its clients.
HEALTHCHECK --interval=2s --timeout=5s --retries=5 CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/15672 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 4 line <&3 && [[ $line == HTTP/* ]]"]
# From inside of a container all clients come from another machine, so guest is let in. Publish the ports on loopback only.
ENTRYPOINT ["mqtool", "broker", "serve", "--host", "0.0.0.0", "--guest-from-anywhere", "--management-port", "15672", "--recording"]
