#!/usr/bin/env bash
# Gives the component expose its certificate: one that Google makes and renews for a name which points to the static address, or a
# Cloudflare origin certificate, from files into a Secret. The key never stands on a command line.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"

DOMAIN=${DOMAIN:-}
CERT=${CERT:-}
KEY=${KEY:-}
NAME=${NAME:-inferq-expose}
SECRET=${SECRET:-inferq-origin-certificate}

help() {
    cat << 'HELP'
Makes the certificate that the Ingress serves

Usage: certificate.sh managed --project ID --domain NAME [FLAGS]
       certificate.sh origin  --project ID --cert FILE --key FILE [FLAGS]

  managed        Google makes it for DOMAIN once that name points to static-ip.sh's address; that takes up to an hour, during
                 which its status is Provisioning
  --domain NAME  DOMAIN
  --name NAME    NAME of the ManagedCertificate [inferq-expose]

  origin         from files, such as Cloudflare's origin certificate: Cloudflare stands before the address, and trusts it
  --cert FILE    CERT, PEM, the chain included
  --key FILE     KEY, PEM
  --secret NAME  SECRET that holds both, of type kubernetes.io/tls [inferq-origin-certificate]. One
                 with another certificate is replaced

Example:
  certificate.sh managed --project my-project --domain inferq.example.com
  certificate.sh origin --project my-project --cert origin.pem --key origin.key
HELP
}

kind=
split_flags "$@"
set -- "${words[@]}"
while (($#)); do
    taken=2
    case $1 in
        --domain) value_of "$@" && DOMAIN=$value ;;
        --name) value_of "$@" && NAME=$value ;;
        --cert) value_of "$@" && CERT=$value ;;
        --key) value_of "$@" && KEY=$value ;;
        --secret) value_of "$@" && SECRET=$value ;;
        managed | origin) kind=$1 taken=1 ;;
        *) common_flag "$@" ;;
    esac
    shift "$taken"
done

case $kind in
    managed)
        [[ $DOMAIN =~ ^[a-z0-9-]+(\.[a-z0-9-]+)+$ ]] || refuse "--domain is a name like inferq.example.com, not \"$DOMAIN\""
        need_gcloud
        need_kubectl
        need_project
        need_context
        if is_there kube get managedcertificate "$NAME" --namespace "$NAMESPACE"; then
            domains=$(kube get managedcertificate "$NAME" --namespace "$NAMESPACE" --output 'jsonpath={.spec.domains[*]}')
            if [[ $domains == "$DOMAIN" ]]; then
                there_already "certificate $NAME for $DOMAIN"
                kube get managedcertificate "$NAME" --namespace "$NAMESPACE" \
                    --output 'jsonpath={.status.certificateStatus}{"\n"}'
                exit 0
            fi
            fail "certificate $NAME is there for $domains: give another --name, and name both in the Ingress until it is active"
        fi
        object=$(mktemp)
        trap 'rm -f "$object"' EXIT
        cat > "$object" << YAML
apiVersion: networking.gke.io/v1
kind: ManagedCertificate
metadata:
  name: $NAME
  namespace: $NAMESPACE
  labels:
    app.kubernetes.io/name: inferq
    app.kubernetes.io/component: worker
spec:
  domains:
    - $DOMAIN
YAML
        if [[ -n $DRY_RUN ]]; then cat "$object"; fi
        change kube apply --filename "$object"
        ;;
    origin)
        [[ -n $CERT && -n $KEY ]] || refuse "origin needs --cert and --key"
        for file in "$CERT" "$KEY"; do
            [[ -r $file ]] || refuse "$file can't be read"
        done
        grep -q -- '-----BEGIN CERTIFICATE-----' "$CERT" || refuse "$CERT holds no certificate in PEM"
        grep -qE -- '-----BEGIN ([A-Z]+ )?PRIVATE KEY-----' "$KEY" || refuse "$KEY holds no private key in PEM"
        need_gcloud
        need_kubectl
        need_project
        need_context
        create=(kube create secret tls "$SECRET" --namespace "$NAMESPACE" --cert "$CERT" --key "$KEY")
        if is_there kube get secret "$SECRET" --namespace "$NAMESPACE"; then
            found=$(kube get secret "$SECRET" --namespace "$NAMESPACE" --output 'jsonpath={.data.tls\.crt}')
            if [[ $(base64 -d <<< "$found") == "$(< "$CERT")" ]]; then
                there_already "secret $SECRET with this certificate"
                exit 0
            fi
            # Made here, where kubectl checks that key and certificate belong together, then put in place of the old one.
            object=$(mktemp)
            trap 'rm -f "$object"' EXIT
            "${create[@]}" --dry-run=client --output yaml > "$object"
            change kube replace --filename "$object"
        else
            change "${create[@]}"
        fi
        ;;
    *) refuse "managed or origin: see certificate.sh --help" ;;
esac
