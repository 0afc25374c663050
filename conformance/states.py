#!/usr/bin/env python3
"""Changes a cloud for good, so that verdicts are compared on more than what a new cloud shows: `states.py CLOUD dressed|broken`.

CLOUD    an administrator's entry of clouds.yaml
dressed  it gets what the standards ask for, as far as a cloud's operator can give it by API: flavors, public images with their
         properties, volume types
broken   some of that is wrong now, each thing in another way (only after `dressed`)

For clouds that are thrown away afterwards. `certify.py --admin CLOUD` calls it.
"""
import datetime, os, sys

import openstack, openstack.exceptions, yaml

RULES = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../crates/certify/data/iaas.yaml')
IMAGES = (
    ('Ubuntu 24.04', 'ubuntu', '24.04', 'generic', 'https://cloud-images.ubuntu.com/releases/noble/release-20261101/i.img'),
    ('Ubuntu 22.04', 'ubuntu', '22.04', 'generic', 'https://cloud-images.ubuntu.com/jammy/i.img'),
    ('Debian 13', 'debian', '13', 'generic', 'https://cdimage.debian.org/cdimage/cloud/trixie/i.qcow2'),
    ('Debian 12', 'debian', '12', 'strange', 'https://cloud.debian.org/images/cloud/bookworm/i.qcow2'),
    ('ubuntu-capi-image v1.36', 'ubuntu', '24.04', 'k8snode', 'https://nbg1.your-objectstorage.com/osism/openstack-k8s-capi-images/ubuntu-2404-kube-v1.36.qcow2'),
)
TYPES = (('both', '[scs:encrypted, replicated] safe'), ('plain', 'nothing said'), ('bad', '[scs:foo] x'))
# Property -> another value, or None: it goes.
WRONG = {
    'Ubuntu 24.04': {'image_build_date': '2026-01-01', 'replace_frequency': 'sometimes', 'image_source': None, 'hw_disk_bus': 'floppy'},
    'Ubuntu 22.04': {'os_distro': None, 'uuid_validity': 'forever', 'hotfix_hours': '-3', 'min_disk': 0},
    'Debian 13': {'architecture': 'vax', 'provided_until': None, 'image_original_user': '', 'hypervisor_type': 'bochs'},
    'Debian 12': {'os_version': 'bookworm', 'image_description': '', 'name': 'Debian 12 old', 'hw_rng_model': None},
}
NO_NAMES = ('SCS-8V', 'SCS-2V-4-', 'SCS-3X-4', 'SCS-2V-4_xen_hwv_i')


def flavor(cloud, name, vcpus, ram, disk, specs):
    made = cloud.compute.create_flavor(name=name, vcpus=vcpus, ram=ram, disk=disk)
    if specs: cloud.compute.create_flavor_extra_specs(made, {key: str(value) for key, value in specs.items()})


def dressed(cloud):
    have = {f.name for f in cloud.compute.flavors()}
    with open(RULES) as f: checks = [case['check'] for case in yaml.safe_load(f)['testcases']]
    for check in checks:
        if check['kind'] == 'flavor' and check['name'] not in have:
            flavor(cloud, check['name'], check['vcpus'], check['ram_mib'], check.get('disk_gib', 0), check.get('extra_specs'))
            have.add(check['name'])
    for name, description in TYPES: cloud.block_storage.create_type(name=name, description=description)
    # What was public before would be judged, too, and says nothing of itself.
    for image in list(cloud.image.images(visibility='public')): cloud.image.update_image(image, visibility='private')
    built = str(datetime.date.today() - datetime.timedelta(days=3))
    for name, distro, version, purpose, source in IMAGES:
        cloud.image.create_image(
            name=name, disk_format='raw', container_format='bare', visibility='public', min_disk=10, min_ram=512, data=b'x' * 1024, allow_duplicates=True,
            architecture='x86_64', os_distro=distro, os_version=version, os_purpose=purpose, hw_disk_bus='scsi', hypervisor_type='kvm', hw_rng_model='virtio',
            image_build_date=built, image_original_user=distro, image_source=source, image_description='https://example.org/', replace_frequency='monthly',
            provided_until='none', uuid_validity='last-3', hotfix_hours='0')


def broken(cloud):
    images = {image.name: image for image in cloud.image.images()}
    for name, wrong in WRONG.items():
        changes = [{'op': 'remove', 'path': f'/{key}'} if value is None else {'op': 'replace', 'path': f'/{key}', 'value': value} for key, value in wrong.items()]
        # As Glance takes it: the SDK would send the difference to what it believes the image to be.
        place = cloud.image.get_endpoint().rstrip('/')
        answer = cloud.image.patch(f'{place if place.endswith("v2") else place + "/v2"}/images/{images[name].id}', json=changes,
                                   headers={'Content-Type': 'application/openstack-images-v2.1-json-patch'})
        if answer.status_code != 200: raise SystemExit(f'{name}: {answer.status_code} {answer.text}')
    for name in ('SCS-1V-4', 'SCS-2V-8-20', 'SCS-4V-16-100s'): cloud.compute.delete_flavor(cloud.compute.find_flavor(name, ignore_missing=False))
    for lie in (('SCS-1V-4', 1, 2048, 0, None), ('SCS-2V-8-20', 2, 8192, 30, {'scs:name-v1': 'SCS-2V:8:20', 'scs:cpu-type': 'wrong'}),
                *((name, 3, 4096, 0, None) for name in NO_NAMES)):
        try: flavor(cloud, *lie)
        except openstack.exceptions.BadRequestException as e: print(f'  {lie[0]}: refused: {e.details}')  # Allod holds flavors to their names.
    both = next(t for t in cloud.block_storage.types() if t.name == 'both')
    cloud.block_storage.update_type(both, description='[scs:replicated')
    rule = {'direction': 'ingress', 'ethertype': 'IPv4', 'remote_ip_prefix': '0.0.0.0/0', 'used_in_default_sg': True, 'used_in_non_default_sg': True}
    answer = cloud.network.post('/default-security-group-rules', json={'default_security_group_rule': rule})
    if answer.status_code != 201: raise SystemExit(f'default rules: {answer.status_code} {answer.text}')


if __name__ == '__main__':
    name, state = sys.argv[1:]
    {'dressed': dressed, 'broken': broken}[state](openstack.connect(cloud=name))
